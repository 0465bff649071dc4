"""Words and sentences of English text as IFEval's verifiers count them, without data files or downloads.

The original counts with NLTK's trained Punkt model; the rules here are Punkt's with a list of abbreviations in the place of the
trained one. Source: Kiss & Strunk, "Unsupervised Multilingual Sentence Boundary Detection", Computational Linguistics 32, 2006.
"""

from __future__ import annotations

import re
from itertools import zip_longest

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
_RUN = re.compile(r"\S+")
_CLOSED = re.compile(r"\A[\"'”’)\]}]+(?=\s|$)")  # belongs to the sentence before it
_AFTER = frozenset("\"'”’)]};*:@({[!?")  # what may follow a mark without a space
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
    """Sentences: text up to a full stop, question or exclamation mark that ends one, with what closes quotes and brackets."""
    runs = list(_RUN.finditer(text))
    count, end = 0, 0
    for run, following in zip_longest(runs, runs[1:]):
        for at in _marks(run[0], following is not None):
            after = run[0][at + 1 :][:1] or (following[0] if following else "")
            if _ends(run[0][: at + 1], after):
                count, end = count + 1, run.start() + at + 1
    return count + (1 if _CLOSED.sub("", text[end:], count=1).strip() else 0)


def _marks(word: str, more: bool) -> list[int]:
    """Where a sentence can end in a run of signs: at the last mark that something follows, and at one that begins the run."""
    places = [n for n, sign in enumerate(word) if sign in ".!?" and (word[n + 1] in _AFTER if n + 1 < len(word) else more)]
    return sorted({*places[-1:], *(n for n in places if n == 0)})


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
