"""Instructions with constraints that can be checked, and answers that obey them.

The content comes from short request-answer pairs. Constraints are either facts about the given answer (its length, a
word that it holds, a sign that it lacks) or edits that make a constraint true (case, bullets, a title, an ending).
Every constraint is checked again on the finished answer, and stored beside the chat so that a test can check it once
more.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import wording
from .chats import UNWANTED, short_pairs
from .draft import Draft

Check = dict[str, Any]
Edit = tuple[str, Check] | None
LEAST = 2600
# Requests that carry a constraint of form themselves, or that hang on something which is not there.
FORMED = re.compile(
    r"\b(words|characters|tweet|poem|haiku|lyrics|rhym\w*|JSON|table|password|code|SQL|HTML|citation|emoji|"
    r"hashtag|fill in|email|letter|script|(?:one|two|three|\d) (?:sentence|paragraph))",
    re.I,
)
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|Mr|Mrs|Dr|St|U\.S|a\.m|p\.m|approx|No)\.|\d\.\d|\.\.\.|\b[A-Z]\.")
LIST_LINE = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+(.*\S)\s*$")


def words(text: str) -> list[str]:
    """The words of a text: what white space separates and has a letter or digit."""
    return [w for w in text.split() if re.search(r"\w", w)]


def list_items(text: str) -> list[str] | None:
    """The items of an answer that is one list, or None."""
    lines = [line for line in text.split("\n") if line.strip()]
    found = [LIST_LINE.match(line) for line in lines]
    return [m.group(1) for m in found if m] if len(lines) > 1 and all(found) else None


def content_words(text: str) -> list[str]:
    """Lower-case words of seven letters or more, each once, in the order of the text."""
    return list(dict.fromkeys(re.findall(r"(?<![\w-])[a-z]{7,}(?![\w-])", text)))


def words_between(answer: str, rng: random.Random, set_name: str) -> Edit:
    """A range, a ceiling or a floor around the true count."""
    count = len(words(answer))
    kind = rng.choice(("words_max", "words_min", "words_between"))
    if count < 8:
        kind = "words_max"
    high, low = -(-(count + rng.randrange(1, 9)) // 5) * 5, max(3, (count - rng.randrange(1, 9)) // 5 * 5)
    if kind == "words_max":
        return answer, {"kind": kind, "n": high, "n1": high + 1}
    return answer, {"kind": kind, "n": low} if kind == "words_min" else {"kind": kind, "low": low, "high": high}


def sentences(answer: str, rng: random.Random, set_name: str) -> Edit:
    """The number of sentences, where it is beyond doubt."""
    if "\n" in answer or ABBREVIATION.search(answer) or not re.search(r"[.!?]$", answer) or '"' in answer:
        return None
    count = len(re.findall(r"[.!?](?=\s+[A-Z]|$)", answer))
    plain = count == len(re.findall(r"[.!?]", answer))
    return (answer, {"kind": "sentences", "n": count}) if plain and 2 <= count <= 8 else None


def paragraphs(answer: str, rng: random.Random, set_name: str) -> Edit:
    """The number of paragraphs of running text."""
    parts = answer.split("\n\n")
    if len(parts) < 2 or any("\n" in part or LIST_LINE.match(part) for part in parts):
        return None
    return answer, {"kind": "paragraphs", "n": len(parts)}


def bullets(answer: str, rng: random.Random, set_name: str) -> Edit:
    """A list with another bullet sign."""
    items, mark = list_items(answer), rng.choice("-*")
    if not items:
        return None
    return "\n".join(f"{mark} {item}" for item in items), {"kind": "bullets", "n": len(items), "mark": mark}


def numbered(answer: str, rng: random.Random, set_name: str) -> Edit:
    """A list with numbers."""
    items = list_items(answer)
    return ("\n".join(f"{i}. {t}" for i, t in enumerate(items, 1)), {"kind": "numbered", "n": len(items)}) if items else None


def as_json(answer: str, rng: random.Random, set_name: str) -> Edit:
    """A list as a JSON object."""
    items, key = list_items(answer), rng.choice(wording.KEYS[set_name])
    return (json.dumps({key: items}, indent=2), {"kind": "json", "key": key, "n": len(items)}) if items else None


def keyword(answer: str, rng: random.Random, set_name: str) -> Edit:
    """A word that the answer holds."""
    choices = content_words(answer)
    return (answer, {"kind": "keyword", "word": rng.choice(choices)}) if choices else None


def keyword_count(answer: str, rng: random.Random, set_name: str) -> Edit:
    """A word that the answer holds more than once."""
    counts = {w: len(re.findall(rf"\b{w}\b", answer.lower())) for w in content_words(answer)}
    choices = [(w, c) for w, c in counts.items() if c >= 2]
    if not choices:
        return None
    word, count = rng.choice(choices)
    return answer, {"kind": "keyword_count", "word": word, "n": count}


def avoid(answer: str, rng: random.Random, set_name: str) -> Edit:
    """Two words that the answer lacks."""
    choices = [w for w in wording.COMMON[set_name] if not re.search(rf"\b{w}\b", answer.lower())]
    if len(choices) < 2:
        return None
    first, second = rng.sample(choices, 2)
    return answer, {"kind": "avoid", "first": first, "second": second}


def no_sign(kind: str, pattern: str) -> Callable[[str, random.Random, str], Edit]:
    """A constraint that the answer lacks every match of ``pattern``."""

    def edit(answer: str, rng: random.Random, set_name: str) -> Edit:
        return None if re.search(pattern, answer) else (answer, {"kind": kind})

    return edit


def lowercase(answer: str, rng: random.Random, set_name: str) -> Edit:
    """The answer without capitals."""
    return answer.lower(), {"kind": "lowercase"}


def uppercase(answer: str, rng: random.Random, set_name: str) -> Edit:
    """A short answer in capitals."""
    return (answer.upper(), {"kind": "uppercase"}) if len(answer) < 260 else None


def quoted(answer: str, rng: random.Random, set_name: str) -> Edit:
    """The answer in double quotation marks."""
    return None if '"' in answer or "\n" in answer else (f'"{answer}"', {"kind": "quoted"})


def tags(answer: str, rng: random.Random, set_name: str) -> Edit:
    """The answer between two tags."""
    tag = rng.choice(wording.TAGS[set_name])
    return f"<{tag}>\n{answer}\n</{tag}>", {"kind": "tags", "tag": tag}


def starts(answer: str, rng: random.Random, set_name: str) -> Edit:
    """The first word, where it is an ordinary one."""
    first = answer.split()[0]
    return (answer, {"kind": "starts", "word": first}) if first.isalpha() and len(first) > 1 else None


def ends(answer: str, rng: random.Random, set_name: str) -> Edit:
    """A fixed last phrase, in a paragraph of its own after a list."""
    phrase = rng.choice(wording.PHRASES[set_name])
    if not re.search(r"[.!?]$", answer):
        return None
    return answer + ("\n\n" if "\n" in answer else " ") + phrase, {"kind": "ends", "phrase": phrase}


def postscript(answer: str, rng: random.Random, set_name: str) -> Edit:
    """A postscript after the answer."""
    note = rng.choice(wording.NOTES[set_name])
    return f"{answer}\n\n{note}", {"kind": "postscript", "mark": note.split()[0]}


EDITS: tuple[tuple[str, Callable[[str, random.Random, str], Edit]], ...] = (
    ("shape", bullets),
    ("shape", numbered),
    ("shape", as_json),
    ("shape", paragraphs),
    ("shape", sentences),
    ("case", lowercase),
    ("case", uppercase),
    ("edge", quoted),
    ("edge", tags),
    ("edge", ends),
    ("edge", postscript),
    ("edge", starts),
    ("words", words_between),
    ("word", keyword),
    ("word", keyword_count),
    ("word", avoid),
    ("sign", no_sign("no_comma", ",")),
    ("sign", no_sign("no_digits", r"\d")),
    ("sign", no_sign("no_exclamation", "!")),
)
# Earlier phases edit, later ones only measure what the edits have made.
PHASES = ("shape", "edge", "case", "words", "word", "sign")
CLASHES = (
    {"sentences", "edge"},
    {"paragraphs", "edge"},
    {"json", "edge"},
    {"json", "words"},
    {"case", "edge"},
    {"bullets", "starts"},
    {"numbered", "starts"},
    {"json", "case"},
    {"numbered", "no_digits"},
)


def constrained(request: str, answer: str, set_name: str, rng: random.Random) -> tuple[str, str, list[Check]]:
    """(request with one to three constraints, answer that obeys them, the checks)."""
    wanted = rng.choice((1, 2, 2, 3, 3))
    order = list(EDITS)
    rng.shuffle(order)
    order.sort(key=lambda item: item[0] not in ("shape", "edge") and rng.random() < 0.3)
    groups: dict[str, Callable[[str, random.Random, str], Edit]] = {}
    for group, edit in order:
        if group not in groups and edit(answer, random.Random(0), set_name):
            groups[group] = edit
    taken = sorted(list(groups)[:wanted], key=PHASES.index)
    checks: list[Check] = []
    for group in taken:
        made = groups[group](answer, rng, set_name)
        if made is None:
            continue
        text, check = made
        names = {c["kind"] for c in checks} | {c["group"] for c in checks} | {check["kind"], group}
        if any(clash <= names for clash in CLASHES):
            continue
        answer, checks = text, [*checks, check | {"group": group}]
    checks = [{k: v for k, v in check.items() if k != "group"} for check in checks]
    rng.shuffle(checks)
    lines = [rng.choice(wording.WORDING[set_name][c["kind"]]).format(**c) for c in checks]
    last = [line for line in lines if line.endswith(("?", ".")) is False]
    lines = [line for line in lines if line not in last] + last
    return f"{request}\n\n{' '.join(lines)}", answer, [{k: v for k, v in c.items() if k != "n1"} for c in checks]


def usable(request: str, answer: str) -> bool:
    """Whether a pair can carry constraints: plain, self-contained, of modest length."""
    plain = request.isascii() and answer.isascii() and "```" not in answer and "{{" not in answer and "|" not in answer
    sized = 15 <= len(request) <= 420 and 50 <= len(answer) <= 1500
    refusal = re.search(
        r"\b(sorry|as an AI|I cannot|I can't|not provided|unable to|language model|No ?input|noinput)\b",
        answer + request,
        re.I,
    )
    glued = re.search(r"\b[a-z]{4,}[A-Z][a-z]", request)
    return plain and sized and not refusal and not glued and not FORMED.search(request) and not UNWANTED.search(request + answer)


def spaced(request: str) -> str:
    """The request with its input on a line of its own (some sources glue the two together)."""
    request = re.sub(r"(?<=[a-z][.?:])(?=[A-Z][a-z ])", "\n\n", request)
    request = re.sub(r"(?<=[a-z]{4})([a-z]*)(?=[A-Z][a-z]+ )", r"\1.\n\n", request, count=1)
    return request if re.search(r"[.?!:]$", request) or "\n" in request else request + "."


def conversations(data: Path, set_name: str, rng: random.Random) -> Iterator[Draft]:
    """Chats of several turns, each with one to three constraints."""
    pairs = [(s, spaced(q), a) for s, _, q, a in short_pairs(data, set_name) if usable(q, a)]
    rng.shuffle(pairs)
    chat: list[dict[str, Any]] = []
    checks: list[Check] = []
    sources: list[str] = []
    for source, request, answer in pairs:
        if not chat and rng.random() < 0.35:
            chat = [{"role": "system", "content": rng.choice(wording.SYSTEM[set_name])}]
        again = rng.random() < 0.75 and len(answer) < 900
        for ask in [request] + ([rng.choice(wording.FOLLOW[set_name])] if again else []):
            asked, reply, made = constrained(ask, answer, set_name, rng)
            if not made or any(m["content"] == reply for m in chat):
                continue
            chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
            checks += [{"message": len(chat) - 1} | check for check in made]
        sources.append(source)
        if sum(len(m["content"]) for m in chat) >= LEAST:
            source = f"constraints from templates over {'; '.join(sources)}"
            yield Draft("instructions", source, "Apache-2.0", messages=chat, constraints=checks)
            chat, checks, sources = [], [], []
