"""What a maker yields (`Draft`), and the gate that every draft passes before it enters a set.

The gate keeps the three sets apart: a draft that shares a window of 60 characters (lower case, white space collapsed)
with a sample of another set, or with a question of an evaluation task, is refused. It knows nothing of the sources.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SETS = ("calibration", "dev", "score")
DOMAINS = ("prose", "reasoning", "code", "agent", "tool_call", "instructions")
ROWS = {"calibration": 40, "dev": 12, "score": 20}
WINDOW = 60

Message = dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """One candidate sample: either ``text`` or ``messages`` (with ``tools`` where the chat has some)."""

    domain: str
    source: str
    licence: str
    text: str | None = None
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    constraints: list[dict[str, Any]] | None = None

    def record(self, name: str) -> dict[str, Any]:
        """The JSON object of the packaged file, keys in a fixed order."""
        row: dict[str, Any] = {"id": name, "domain": self.domain}
        for key in ("text", "messages", "tools", "constraints"):
            if getattr(self, key) is not None:
                row[key] = getattr(self, key)
        return row | {"source": self.source, "licence": self.licence}


def normalise(text: str) -> str:
    """Lower case, white space collapsed: the form in which texts are compared."""
    return re.sub(r"\s+", " ", text).strip().lower()


def leaves(value: Any) -> Iterator[str]:
    """Every string value inside a JSON value (keys are scaffolding and left out)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)


def windows(value: Any) -> set[str]:
    """All windows of 60 characters of every string inside ``value``."""
    found: set[str] = set()
    for leaf in leaves(value):
        text = normalise(leaf)
        found.update(text[i : i + WINDOW] for i in range(len(text) - WINDOW + 1))
    return found


def body(draft: Draft) -> list[Any]:
    """The parts of a draft that a model reads."""
    return [draft.text, draft.messages, draft.tools]


def tool_names(draft: Draft) -> set[str]:
    """Names of the tools that the draft offers."""
    return {tool["function"]["name"] for tool in draft.tools or []}


def questions(folder: Path) -> Iterator[str]:
    """Every question of the evaluation tasks under ``folder`` (the data folder's ``eval``)."""
    for path in sorted(folder.glob("gsm8k/test*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["question"]
    for path in sorted(folder.glob("mmlu/*/*.csv")):
        with path.open(encoding="utf-8", newline="") as handle:
            yield from (row[0] for row in csv.reader(handle) if row)
    for path in sorted(folder.glob("ifeval/*.jsonl")) + sorted(folder.glob("ifbench/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["prompt"]
    for path in sorted(folder.glob("bfcl_v3/*.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from leaves(json.loads(line)["question"])
    for path in sorted(folder.glob("humaneval/HumanEval.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["prompt"] for line in lines)


@dataclass
class Gate:
    """Refuses drafts that would join two sets or leak an evaluation question."""

    forbidden: set[str]
    seen: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in SETS})
    tools: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in SETS})
    refused: dict[str, int] = field(default_factory=dict)

    def admit(self, set_name: str, draft: Draft, repeats: float = 0.3) -> bool:
        """Whether the draft may enter; if so its windows now belong to ``set_name``.

        Args:
            repeats: the largest share of windows that the same set may hold already (near-duplicates are refused).
        """
        mine, offered = windows(body(draft)), tool_names(draft)
        others = [name for name in SETS if name != set_name]
        reason = ""
        if mine & self.forbidden:
            reason = "evaluation question"
        elif any(mine & self.seen[name] for name in others) or any(offered & self.tools[name] for name in others):
            reason = "in another set"
        elif len(mine & self.seen[set_name]) > repeats * max(len(mine), 1):
            reason = "repeated"
        if reason:
            self.refused[reason] = self.refused.get(reason, 0) + 1
            return False
        self.seen[set_name] |= mine
        self.tools[set_name] |= offered
        return True


def clip(text: str, least: int, most: int) -> str | None:
    """The shortest prefix of at least ``least`` characters that ends a sentence or line; None if the text is short."""
    if len(text) < least:
        return None
    ends = re.compile(r"(?<=[.!?])[\"')]?\s|\n")
    found = ends.search(text, least, most)
    return text[: found.start() if found else most].strip()
