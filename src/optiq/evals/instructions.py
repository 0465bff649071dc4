"""IFEval's 25 kinds of instructions: whether a text follows one, by rules alone. Pure functions, no downloads.

A check takes the text and the instruction's arguments as the data has them. The rules are those of the published verifiers, so
that verdicts agree with theirs; where one of them cannot decide (a language of text without letters), it counts as followed, as
there. A kind that is not in the table is an error, never a pass.

Source: Zhou et al., "Instruction-Following Evaluation for Large Language Models", 2023 (arXiv 2311.07911).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from optiq.errors import FormatError
from optiq.evals import wording
from optiq.registry import Table

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]
CHECKS: Table[Check] = Table("instruction")


def follows(kind: str, text: str, arguments: Arguments) -> bool:
    """Whether a text follows an instruction; an empty text follows none.

    Raises:
        InputError: no such kind.
        FormatError: an argument that the kind needs is missing or has an unknown value.
    """
    check = CHECKS[kind]
    try:
        return bool(text.strip()) and check(text, arguments)
    except KeyError as error:
        raise FormatError(f"ifeval: instruction {kind} lacks the argument {error}; the data file is damaged") from error


def _kind(name: str) -> Callable[[Check], Check]:
    return lambda check: CHECKS.add(name, check)


def _related(count: int, relation: str, bound: int) -> bool:
    if relation not in ("at least", "less than"):
        raise FormatError(f"ifeval: relation {relation!r}, expected 'at least' or 'less than'; the data file is damaged")
    return count >= bound if relation == "at least" else count < bound


def _language(text: str) -> str | None:
    """The language of a text as an ISO 639-1 code, the same in every run; None where nothing tells."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0
    try:
        return str(detect(text))
    except LangDetectException:
        return None


@_kind("change_case:capital_word_frequency")
def _capital_words(text: str, given: Arguments) -> bool:
    return _related(wording.capital_words(text), given["capital_relation"], given["capital_frequency"])


@_kind("change_case:english_capital")
def _capital(text: str, given: Arguments) -> bool:
    return text.isupper() and _language(text) in ("en", None)


@_kind("change_case:english_lowercase")
def _lowercase(text: str, given: Arguments) -> bool:
    return text.islower() and _language(text) in ("en", None)


@_kind("combination:repeat_prompt")
def _repeats(text: str, given: Arguments) -> bool:
    return text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


@_kind("combination:two_responses")
def _two_responses(text: str, given: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


@_kind("detectable_content:number_placeholders")
def _placeholders(text: str, given: Arguments) -> bool:
    return bool(len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"])


@_kind("detectable_content:postscript")
def _postscript(text: str, given: Arguments) -> bool:
    marker = given["postscript_marker"]
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.lower())), text.lower()) is not None


@_kind("detectable_format:constrained_response")
def _constrained(text: str, given: Arguments) -> bool:
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


@_kind("detectable_format:json_format")
def _json(text: str, given: Arguments) -> bool:
    inner = re.sub(r"^```(?:json|Json|JSON)?", "", text.strip()).removesuffix("```").strip()
    try:
        json.loads(inner)
    except ValueError:
        return False
    return True


@_kind("detectable_format:multiple_sections")
def _sections(text: str, given: Arguments) -> bool:
    return bool(len(re.findall(given["section_spliter"] + r"\s?\d+", text)) >= given["num_sections"])


@_kind("detectable_format:number_bullet_lists")
def _bullets(text: str, given: Arguments) -> bool:
    stars = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == int(given["num_bullets"])


@_kind("detectable_format:number_highlighted_sections")
def _highlights(text: str, given: Arguments) -> bool:
    marked = re.findall(r"\*[^\n*]*\*", text) + re.findall(r"\*\*[^\n*]*\*\*", text)
    return bool(sum(bool(part.strip("*").strip()) for part in marked) >= given["num_highlights"])


@_kind("detectable_format:title")
def _title(text: str, given: Arguments) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


@_kind("keywords:existence")
def _keywords(text: str, given: Arguments) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in given["keywords"])


@_kind("keywords:forbidden_words")
def _forbidden(text: str, given: Arguments) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in given["forbidden_words"])


@_kind("keywords:frequency")
def _frequency(text: str, given: Arguments) -> bool:
    count = len(re.findall(given["keyword"], text, re.IGNORECASE))
    return _related(count, given["relation"], given["frequency"])


@_kind("keywords:letter_frequency")
def _letters(text: str, given: Arguments) -> bool:
    return _related(text.lower().count(given["letter"].lower()), given["let_relation"], given["let_frequency"])


@_kind("language:response_language")
def _in_language(text: str, given: Arguments) -> bool:
    return _language(text) in (given["language"], None)


@_kind("length_constraints:nth_paragraph_first_word")
def _first_word(text: str, given: Arguments) -> bool:
    paragraphs = [part.strip() for part in text.split("\n\n")]
    count = sum(map(bool, paragraphs))
    nth = given["nth_paragraph"]
    if not 1 <= nth <= count or not paragraphs[nth - 1]:
        return False
    word = paragraphs[nth - 1].split()[0].lstrip("'").lstrip('"').lower()
    return bool(count == given["num_paragraphs"] and re.split(r"[.,?!'\"]", word)[0] == given["first_word"].lower())


@_kind("length_constraints:number_paragraphs")
def _paragraphs(text: str, given: Arguments) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == int(given["num_paragraphs"])


@_kind("length_constraints:number_sentences")
def _sentences(text: str, given: Arguments) -> bool:
    return _related(wording.sentences(text), given["relation"], given["num_sentences"])


@_kind("length_constraints:number_words")
def _words(text: str, given: Arguments) -> bool:
    return _related(wording.words(text), given["relation"], given["num_words"])


@_kind("punctuation:no_comma")
def _no_comma(text: str, given: Arguments) -> bool:
    return "," not in text


@_kind("startend:end_checker")
def _ends_with(text: str, given: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


@_kind("startend:quotation")
def _quoted(text: str, given: Arguments) -> bool:
    inner = text.strip()
    return len(inner) > 1 and inner[0] == inner[-1] == '"'
