"""One progress channel: stages that advance, remarks, warnings and one result.

Work functions take ``events: Events = QUIET`` and report to it; who renders it, and how, is chosen at the edge with
`open_events`. Progress goes to stderr and never mixes with a result on stdout. Knows nothing of the work itself.

JSON lines (schema 1), one object per line:

    {"schema": 1, "time": <unix seconds>, "type": <type>, ...}
    stage_start   stage, total|null, unit
    advance       stage, done, total|null, unit, note        (at most ten per second and stage)
    stage_end     stage, done, total|null, unit, seconds, ok
    info|warning  text
    result        data
    error         kind, text
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from optiq.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress

SCHEMA = 1
MODES = ("auto", "plain", "jsonl", "quiet")
ADVANCE_INTERVAL_S = 0.1  # ten updates a second: as much as an eye or a log reader can use
PLAIN_INTERVAL_S = 5.0  # a plain log wants a sign of life, not a line for each step

_logger = logging.getLogger("optiq")


class Stage:
    """One running stage: counts what is done and lets its channel decide when to show it."""

    def __init__(self, name: str, total: int | None, unit: str, show: Callable[[Stage], None], interval_s: float) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0
        self.note = ""
        self.started = time.monotonic()
        self._show = show
        self._interval_s = interval_s
        self._shown = self.started

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.started

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more units as done; ``note`` names the present one and may be shown."""
        self.done += n
        self.note = note
        now = time.monotonic()
        last = self.total is not None and self.done >= self.total
        if last or now - self._shown >= self._interval_s:
            self._shown = now
            self._show(self)


class Events:
    """The channel itself; this base drops progress and sends warnings to the ``optiq`` logger (library use)."""

    interval_s = ADVANCE_INTERVAL_S

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Stage]:
        """Open the stage ``name`` of ``total`` units (None: unknown) and close it on the way out, failed or not."""
        stage = Stage(name, total, unit, self._advanced, self.interval_s)
        self._started(stage)
        ok = False
        try:
            yield stage
            ok = True
        finally:
            self._ended(stage, ok)

    def info(self, text: str) -> None:
        """Say something that a user may like to know."""

    def warn(self, text: str) -> None:
        """Say something that a user has to know though the work goes on."""
        _logger.warning(text)

    def result(self, data: Mapping[str, Any]) -> None:
        """Hand over the command's result (JSON lines carry it; the other forms leave stdout to the command)."""

    def error(self, kind: str, text: str) -> None:
        """Report the failure that ends the command."""

    def close(self) -> None:
        """Release the terminal; safe to call twice."""

    def _started(self, stage: Stage) -> None: ...

    def _advanced(self, stage: Stage) -> None: ...

    def _ended(self, stage: Stage, ok: bool) -> None: ...


QUIET = Events()


class _StreamEvents(Events):
    """Whole lines on a stream; a reader that went away silences the channel and never stops the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self._lock = threading.Lock()

    def _line(self, text: str) -> None:
        with self._lock:
            if self._stream is None:
                return
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # ValueError: the stream is closed
                self._stream = None

    def close(self) -> None:
        with self._lock:
            self._stream = None


class WarningEvents(_StreamEvents):
    """``quiet``: warnings and errors alone."""

    def warn(self, text: str) -> None:
        self._line(f"optiq: warning: {text}")

    def error(self, kind: str, text: str) -> None:
        self._line(f"optiq: error: {text}")


class PlainEvents(WarningEvents):
    """``plain``: a line at the start and end of a stage and a sign of life every few seconds."""

    interval_s = PLAIN_INTERVAL_S

    def info(self, text: str) -> None:
        self._line(text)

    def _started(self, stage: Stage) -> None:
        self._line(f"{stage.name} ...")

    def _advanced(self, stage: Stage) -> None:
        if stage.done != stage.total:
            note = f"  {stage.note}" if stage.note else ""
            self._line(f"{stage.name} {amount_text(stage)}{note}")

    def _ended(self, stage: Stage, ok: bool) -> None:
        state = "" if ok else "stopped after "
        amount = f"{amount_text(stage)} in " if stage.done else ""
        self._line(f"{stage.name}: {state}{amount}{stage.seconds:.1f} s")


class JsonlEvents(_StreamEvents):
    """``jsonl``: one JSON object per line, see the module's docstring."""

    def info(self, text: str) -> None:
        self._send("info", text=text)

    def warn(self, text: str) -> None:
        self._send("warning", text=text)

    def result(self, data: Mapping[str, Any]) -> None:
        self._send("result", data=data)

    def error(self, kind: str, text: str) -> None:
        self._send("error", kind=kind, text=text)

    def _started(self, stage: Stage) -> None:
        self._send("stage_start", stage=stage.name, total=stage.total, unit=stage.unit)

    def _advanced(self, stage: Stage) -> None:
        self._send("advance", **_state(stage), note=stage.note)

    def _ended(self, stage: Stage, ok: bool) -> None:
        self._send("stage_end", **_state(stage), seconds=round(stage.seconds, 3), ok=ok)

    def _send(self, type_: str, **fields: object) -> None:
        event = {"schema": SCHEMA, "time": round(time.time(), 3), "type": type_, **fields}
        self._line(json.dumps(_finite(event), default=str, ensure_ascii=False, allow_nan=False))


class BarEvents(Events):
    """Live bars on a terminal; remarks scroll above them."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._progress: Progress | None = None
        self._tasks: dict[int, Any] = {}

    def info(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        self._console.print(f"optiq: warning: {text}", style="yellow", soft_wrap=True)

    def error(self, kind: str, text: str) -> None:
        self.close()
        self._console.print(f"optiq: error: {text}", style="red", soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _started(self, stage: Stage) -> None:
        if self._progress is None:
            self._progress = _bars(self._console)
            self._progress.start()
        self._tasks[id(stage)] = self._progress.add_task(stage.name, total=stage.total, note="")

    def _advanced(self, stage: Stage) -> None:
        if self._progress is not None:
            note = stage.note if len(stage.note) <= 40 else "…" + stage.note[-39:]
            self._progress.update(self._tasks[id(stage)], completed=stage.done, note=note)

    def _ended(self, stage: Stage, ok: bool) -> None:
        task = self._tasks.pop(id(stage), None)
        if self._progress is None or task is None:
            return
        self._progress.remove_task(task)
        if not self._tasks:
            self.close()
        state = "✓" if ok else "✗"
        amount = f"{amount_text(stage)}  " if stage.done else ""
        self._console.print(f"{state} {stage.name}  {amount}{stage.seconds:.1f} s")


def _bars(console: Any) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console, transient=True)


def amount_text(stage: Stage) -> str:
    """``12/40 blocks`` or, with the total unknown, ``12 blocks``."""
    total = "" if stage.total is None else f"/{stage.total}"
    return f"{stage.done}{total} {stage.unit}".rstrip()


def _state(stage: Stage) -> dict[str, Any]:
    return {"stage": stage.name, "done": stage.done, "total": stage.total, "unit": stage.unit}


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as None, which JSON cannot express otherwise."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def open_events(mode: str = "auto", stream: TextIO | None = None) -> Events:
    """The channel for a mode.

    Args:
        mode: ``auto`` (bars on a terminal, plain lines otherwise), ``plain``, ``jsonl`` or ``quiet`` (warnings alone).
        stream: where it goes; default stderr.

    Raises:
        InputError: an unknown mode.
    """
    stream = sys.stderr if stream is None else stream
    if mode == "auto":
        return BarEvents(stream) if stream.isatty() else PlainEvents(stream)
    if mode == "plain":
        return PlainEvents(stream)
    if mode == "jsonl":
        return JsonlEvents(stream)
    if mode == "quiet":
        return WarningEvents(stream)
    raise InputError(f"unknown events mode {mode!r}; known: {', '.join(MODES)}")
