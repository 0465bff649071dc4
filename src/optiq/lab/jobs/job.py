"""What a job is: the words of a command, where it stands, and the files that it writes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from optiq.lab.text import command_text

SERVER = "serve"  # the one command that runs until it is told to end, and so beside the queue


class State(StrEnum):
    """Where a job stands.

    queued -> running <-> paused -> done | failed | cancelled | interrupted; the last three can be queued again.
    """

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


ALIVE = (State.RUNNING, State.PAUSED)
OPEN = (State.QUEUED, *ALIVE)
RESUMABLE = (State.FAILED, State.CANCELLED, State.INTERRUPTED)


@dataclass(frozen=True)
class Job:
    """One command in the queue.

    Args:
        words: what stands after ``optiq``.
        folder: where its two files are.
        cwd: the directory that it runs in.
        facts: what the page that made it wants to find again (model, output …).
        pid, born: its process, and that process's own time of birth, so that a number used again is not taken for it.
        problem: why it failed, in a line.
        created, started, ended: Unix seconds.
    """

    id: int
    title: str
    words: tuple[str, ...]
    folder: Path
    cwd: str
    facts: Mapping[str, Any]
    state: State
    pid: int | None
    born: str
    problem: str
    created: float
    started: float | None
    ended: float | None

    @property
    def kind(self) -> str:
        """The command's name."""
        return self.words[0]

    @property
    def command(self) -> str:
        """The command as one types it."""
        return command_text(self.words)

    @property
    def events(self) -> Path:
        """What it says of its progress: JSON lines, and whatever else comes on stderr."""
        return self.folder / "events.jsonl"

    @property
    def output(self) -> Path:
        """What it prints on stdout."""
        return self.folder / "output.txt"
