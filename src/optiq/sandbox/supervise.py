"""Runs a command within limits of time, memory and output, and ends everything that it started."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from optiq.sandbox.launch import Launch, children
from optiq.sandbox.policy import Outcome, Policy

_TICK_S = 0.05  # between looks at memory
_SHORT_TICK_S = 0.005  # until the first process inside is known
_LAST_WORDS_S = 2.0  # until pipes must be closed after the end
_PIECE = 1 << 16


def supervise(launch: Launch, policy: Policy, stdin: int, cancelled: threading.Event | None = None) -> Outcome:
    """Run a command to its end, or to the first limit that it meets.

    Args:
        launch: the command.
        policy: its limits.
        stdin: an open file that it reads.
        cancelled: set by another thread to end it soon.

    Raises:
        OSError: if the command cannot be started.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        launch.argv,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=launch.environment,
        cwd=launch.folder,
        pass_fds=launch.descriptors,
        start_new_session=True,
        **launch.identity(),
    )
    with process, _Running(process, launch) as running:
        texts = [bytearray(), bytearray()]
        stopped = _watch(running, policy, texts, start + policy.seconds, cancelled)
        running.kill()
        _rest(process, policy, texts)
        code = process.wait()
    if stopped is None and code in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        stopped = "cpu"
    if stopped is None and any(len(text) > policy.output_bytes for text in texts):
        stopped = "output"
    out, err = (bytes(text[: policy.output_bytes]).decode(errors="replace") for text in texts)
    if code - 128 in signal.valid_signals():  # launchers tell of signals as shells do
        code = 128 - code
    return Outcome(None if stopped else code, out, err, time.monotonic() - start, stopped)


class _Running:
    """The processes of a command, held by descriptors on Linux: their numbers may come to mean others.

    Attributes:
        end: readable once the command has ended, which is not reaped before all others are killed; None on other systems.
    """

    def __init__(self, process: subprocess.Popen[bytes], launch: Launch) -> None:
        self.process, self._find = process, launch.first
        self.end: int | None = None
        self._first = -1

    def __enter__(self) -> _Running:
        if sys.platform == "linux":
            try:
                self.end = os.pidfd_open(self.process.pid)
            except OSError:
                self.kill()
                raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        for descriptor in (self.end, self._first):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)

    @property
    def known(self) -> bool:
        """Whether there is nothing more to find."""
        return self._find is None or self._first >= 0

    def look(self) -> None:
        """Find the first process inside."""
        found = None if self._find is None or self._first >= 0 else self._find(self.process.pid)
        if found is None:
            return
        with contextlib.suppress(OSError):
            held = os.pidfd_open(found)
            if _parent(found) == self.process.pid:  # so it was when the descriptor was opened
                self._first = held
            else:
                os.close(held)

    def ended(self) -> bool:
        """Whether the command has ended, where no descriptor tells."""
        return self.end is None and self.process.poll() is not None

    def kill(self) -> None:
        """Kill everything that the command started.

        A namespace's first process is gone only after all others in it, which its launcher need not wait for.
        """
        self.look()
        if self._first >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
                gone = select.poll()
                gone.register(self._first, select.POLLIN)
                gone.poll(_LAST_WORDS_S * 1000)
        if self.process.returncode is None or self.end is None:  # else the number is another's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


def _watch(
    running: _Running, policy: Policy, texts: list[bytearray], deadline: float, cancelled: threading.Event | None
) -> str | None:
    """Collect output until the command ends; why it must be stopped before, or None."""
    with selectors.DefaultSelector() as selector:
        for text, pipe in zip(texts, (running.process.stdout, running.process.stderr), strict=True):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, text)
        if running.end is not None:
            selector.register(running.end, selectors.EVENT_READ)
        looked = 0.0
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "time"
            if cancelled is not None and cancelled.is_set():
                return "cancelled"
            running.look()
            tick = _TICK_S if running.known and selector.get_map() else _SHORT_TICK_S
            ready = [key for key, _ in selector.select(min(tick, deadline - now))]
            for key in ready:
                if key.data is None:
                    return None
                if not _read(key.fd, key.data):
                    selector.unregister(key.fileobj)
                if len(key.data) > policy.output_bytes:
                    return "output"
            if running.ended():
                return None
            if now - looked >= _TICK_S:
                looked = now
                if sum(map(_resident_bytes, _tree(running.process.pid))) > policy.memory_bytes:
                    return "memory"


def _read(descriptor: int, text: bytearray) -> bool:
    """Take what a pipe holds; False at its end."""
    try:
        piece = os.read(descriptor, _PIECE)
    except BlockingIOError:
        return True
    text += piece
    return bool(piece)


def _rest(process: subprocess.Popen[bytes], policy: Policy, texts: list[bytearray]) -> None:
    """What the pipes still hold, until they are closed: then nobody is left who could write."""
    deadline = time.monotonic() + _LAST_WORDS_S
    for text, pipe in zip(texts, (process.stdout, process.stderr), strict=True):
        assert pipe is not None
        while time.monotonic() < deadline:
            before = len(text)
            if len(text) > policy.output_bytes or not _read(pipe.fileno(), text):
                break
            if len(text) == before:
                time.sleep(0.001)


def _tree(pid: int) -> Iterator[int]:
    """The process and its descendants, as far as the system tells."""
    yield pid
    for child in children(pid):
        yield from _tree(child)


def _parent(pid: int) -> int:
    """The process that started another one; the name between may hold anything."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _resident_bytes(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
