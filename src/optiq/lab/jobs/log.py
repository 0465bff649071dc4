"""What a job has said so far: its event lines read as they come, folded into stages, remarks and a result.

    events.jsonl -> Log.read -> stages, remarks, result, error

The lines are those of `optiq.events`, schema 1, and one of the queue's own; any other line (a library's, a crash's
last words) is a remark.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optiq.lab.text import plain

ATTEMPT = b'{"type": "attempt"}\n'  # the queue's own line before each run of the command
KEPT_REMARKS = 400
KEPT_POINTS = 20_000


@dataclass
class Stage:
    """One stage as it was last heard of; ``ok`` is None while it runs."""

    name: str
    total: int | None = None
    done: int = 0
    unit: str = ""
    note: str = ""
    seconds: float = 0.0
    ok: bool | None = None

    @property
    def share(self) -> float | None:
        """Done of total, 0 to 1; None where the total is unknown."""
        if self.ok:
            return 1.0
        return min(1.0, self.done / self.total) if self.total else None


@dataclass
class Log:
    """A reader of one job's events; `read` takes what was appended since the last time.

    Attributes:
        remarks: (kind, text), kind one of ``info``, ``warning``, ``error``, ``text``; the newest.
        heard: how many events have come; it changes when there is something new.
        notes: (stage, units done, note) of each advance with a note, the newest; charts read losses out of it.
    """

    path: Path
    stages: list[Stage] = field(default_factory=list)
    remarks: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=KEPT_REMARKS))
    notes: deque[tuple[str, int, str]] = field(default_factory=lambda: deque(maxlen=KEPT_POINTS))
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    heard: int = 0
    _offset: int = 0

    def read(self) -> bool:
        """Take in new lines; whether there were any."""
        before = self.heard
        try:
            with self.path.open("rb") as handle:
                handle.seek(self._offset)
                data = handle.read()
        except FileNotFoundError:
            return False
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        for line in data[:whole].splitlines():
            if line.strip():
                self._take(line)
        return self.heard != before

    def _take(self, line: bytes) -> None:
        self.heard += 1
        try:
            event = json.loads(line)
            kind = event["type"]
        except (ValueError, TypeError, KeyError):
            self.remarks.append(("text", plain(line, 2000)))
            return
        if kind == "attempt":
            self.stages.clear()
            self.result = self.error = None
        elif kind == "stage_start":
            self.stages.append(Stage(str(event.get("stage")), event.get("total"), unit=str(event.get("unit") or "")))
        elif kind in ("advance", "stage_end"):
            self._advance(event)
        elif kind in ("info", "warning"):
            self.remarks.append((kind, plain(event.get("text", ""), 2000)))
        elif kind == "result":
            self.result, self.error = event.get("data") or {}, None
        elif kind == "error":
            self.result, self.error = None, event
            self.remarks.append(("error", plain(event.get("text", ""), 2000)))

    def _advance(self, event: Mapping[str, Any]) -> None:
        stage = next((one for one in reversed(self.stages) if one.name == str(event.get("stage")) and one.ok is None), None)
        if stage is None:
            return
        stage.done, stage.total = event.get("done") or 0, event.get("total")
        if event.get("note"):
            stage.note = plain(event["note"], 300)
            self.notes.append((stage.name, stage.done, stage.note))
        if event["type"] == "stage_end":
            stage.ok, stage.seconds = bool(event.get("ok")), float(event.get("seconds") or 0)

    def last_lines(self, count: int) -> list[str]:
        """The newest remarks, oldest first."""
        return [text for _, text in list(self.remarks)[-count:]]
