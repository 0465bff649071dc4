"""Words and sentences of English text as IFEval's verifiers count them, without data files or downloads.

The original counts with NLTK's trained Punkt model; the rules here are Punkt's with a list of abbreviations in the place of the
trained one. Source: Kiss & Strunk, "Unsupervised Multilingual Sentence Boundary Detection", Computational Linguistics 32, 2006.
"""

from __future__ import annotations

import re

_ABBREVIATIONS = frozenset(
    "adm al apr aug av ave ca capt cf co col comdr corp dec dept dr e.g etc feb ft fri gen gov hon i.e inc jan jr jul lt ltd "
    "maj mar messrs mr mrs ms mt nov oct p.m a.m ph.d pp prof rep rev sen sep sept sgt sr st thu tue u.k u.n u.s "
    "u.s.a v vs".split()
)
# Lower case in the middle of sentences: with a capital, such a word begins one even after an abbreviation or an initial.
_COMMON = frozenset(
    "a after also an and another as at because before but by could do first for from he her here his how however i if in it "
    "it's its just let let's many may most my next no not now of on once one or our please she since so some that the their "
    "then there these they this those to we what when where which while who why will with would yes you your".split()
)
_END = re.compile(r"(\S*[.!?])([\"'”’)\]}]*)(?=\s+(\S+))|\S+$")
_TOKEN_BREAK = re.compile(r"\.{2,}|--|[*;@#$%&?!\"“”()\[\]{}<>]|[:,](?!\d)")
_CONTRACTION = re.compile(r"(?i)(n't|'(?:s|m|d|ll|re|ve))\b")


def words(text: str) -> int:
    """Runs of word characters."""
    return len(re.findall(r"\w+", text))


def capital_words(text: str) -> int:
    """Tokens all in capitals; punctuation and contractions are tokens of their own, as in the Penn Treebank."""
    spaced = _CONTRACTION.sub(r" \1", _TOKEN_BREAK.sub(" ", text))
    return sum(token.isupper() for token in spaced.split())


def sentences(text: str) -> int:
    """Sentences: text up to a full stop, question or exclamation mark that ends one."""
    count, open_text = 0, False
    for found in _END.finditer(text):
        open_text = True
        if found[1] is not None and _ends(found[1], found[3]):
            count, open_text = count + 1, False
    return count + (1 if open_text or (text.strip() and not count) else 0)


def _ends(token: str, following: str) -> bool:
    """Whether a sentence ends with this token, given the word after it."""
    if token[-1] in "!?":
        return True
    begins = following.lower().rstrip(".,!?;:") in _COMMON and following[0].isupper()
    if token.endswith(".."):
        return following[0].isupper()
    word = token[:-1].lstrip("\"'“‘([{").lower()
    if word in _ABBREVIATIONS or word.rpartition("-")[2] in _ABBREVIATIONS or re.fullmatch(r"[^\W\d]", word):
        return begins
    if word.replace(",", "").isdigit():  # an ordinal, perhaps
        return not following[0].islower()
    return True
