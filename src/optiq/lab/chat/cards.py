"""What a reply did besides writing, as cards: a title and named texts. Programs that the server ran, calls of other tools. Pure.

A run is what `optiq serve --tools python` tells in `tool_runs`; its words are the model's and its program's, so none is
trusted to have a certain form: what is no text becomes one, what is missing is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optiq.lab.text import line, plain

_SPECIAL = re.compile(r"[*_`<>\[\]\\]")


@dataclass(frozen=True)
class Card:
    """Texts by name, in order; ``language`` is that of the first one where it is a program's."""

    title: str
    texts: tuple[tuple[str, str], ...]
    language: str = ""

    def as_markdown(self) -> str:
        """For a file of text: fences are longer than any in the texts."""
        parts = ["**" + _SPECIAL.sub(r"\\\g<0>", self.title) + "**"]
        for number, (name, text) in enumerate(self.texts):
            language = self.language if number == 0 else ""
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            parts.append(f"{name}:\n\n{fence}{language}\n{text}\n{fence}")
        return "\n\n".join(parts)


def cards(facts: Mapping[str, Any]) -> list[Card]:
    """The cards of a turn, out of what was kept of it."""
    return [*map(run_card, facts.get("runs") or []), *map(_call_card, facts.get("calls") or [])]


def run_card(run: Mapping[str, Any]) -> Card:
    """A program that was run: how it ended, how long it took, which sandbox it ran in; the program, what it printed."""
    tier = str(run.get("tier") or "")
    where = "without a sandbox" if tier == "none" else f"in the sandbox {tier}" if tier else ""
    parts = ["Python", _ending(run), _seconds(run.get("seconds")), where]
    texts = [("Program", run.get("code")), ("Output", run.get("stdout")), ("Errors", run.get("stderr"))]
    shown = [(name, plain(text).rstrip("\n")) for name, text in texts if text]
    if len(shown) < 2:
        shown.append(("Output", "nothing was printed"))
    return Card(line(" · ".join(filter(None, parts)), 200), tuple(shown), "python")


def _ending(run: Mapping[str, Any]) -> str:
    if run.get("stopped"):
        return f"stopped: {run['stopped']}"
    return f"exit code {run.get('exit_code')}"


def _seconds(value: object) -> str:
    return f"{value:.2f} s" if isinstance(value, int | float) else ""


def _call_card(call: Mapping[str, Any]) -> Card:
    return Card(line(call.get("name") or "a tool", 80), (("Called with", plain(call.get("arguments") or "")),))
