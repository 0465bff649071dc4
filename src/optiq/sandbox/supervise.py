"""Runs a command within limits of time, memory and output, and ends everything that it started."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from optiq.sandbox.launch import Launch, children
from optiq.sandbox.policy import Outcome, Policy

_TICK_S = 0.05  # between looks at memory
_LAST_WORDS_S = 2.0  # until pipes must be closed after the end
_PIECE = 1 << 16


def supervise(launch: Launch, policy: Policy, stdin: str) -> Outcome:
    """Run a command to its end, or to the first limit that it meets.

    Raises:
        OSError: if the command cannot be started.
    """
    start = time.monotonic()
    with tempfile.TemporaryFile() as given:
        given.write(stdin.encode())
        given.seek(0)
        process = subprocess.Popen(
            launch.argv,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=launch.environment,
            cwd=launch.folder,
            pass_fds=launch.descriptors,
            start_new_session=True,
            **launch.identity(),
        )
    with process:
        texts = [bytearray(), bytearray()]
        try:
            stopped = _watch(process, policy, texts, start + policy.seconds)
        finally:
            _end(process, launch)
        _rest(process, policy, texts)
        code = process.wait()
    if stopped is None and code in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        stopped = "cpu"
    out, err = (bytes(text[: policy.output_bytes]).decode(errors="replace") for text in texts)
    if code > 128:  # launchers tell of signals as shells do
        code = 128 - code
    return Outcome(None if stopped else code, out, err, time.monotonic() - start, stopped)


def _watch(process: subprocess.Popen[bytes], policy: Policy, texts: list[bytearray], deadline: float) -> str | None:
    """Collect output until the command ends; why it must be stopped before, or None."""
    with selectors.DefaultSelector() as selector:
        for text, pipe in zip(texts, (process.stdout, process.stderr), strict=True):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, text)
        looked = 0.0
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "time"
            for key, _ in selector.select(min(_TICK_S, deadline - now)):
                if not _read(key.fd, key.data):
                    selector.unregister(key.fileobj)
                if len(key.data) > policy.output_bytes:
                    return "output"
            if process.poll() is not None:
                return None
            if now - looked >= _TICK_S:
                looked = now
                if sum(map(_resident_bytes, _tree(process.pid))) > policy.memory_bytes:
                    return "memory"
            if not selector.get_map():
                time.sleep(0.001)


def _read(descriptor: int, text: bytearray) -> bool:
    """Take what a pipe holds; False at its end."""
    try:
        piece = os.read(descriptor, _PIECE)
    except BlockingIOError:
        return True
    text += piece
    return bool(piece)


def _end(process: subprocess.Popen[bytes], launch: Launch) -> None:
    """Kill everything that the command started.

    A namespace's first process is gone only after all others in it, which its launcher need not wait for.
    """
    first = launch.first(process.pid)
    if first is not None:
        with contextlib.suppress(OSError):
            gone = os.pidfd_open(first)
            try:
                signal.pidfd_send_signal(gone, signal.SIGKILL)
                select.select([gone], [], [], _LAST_WORDS_S)
            finally:
                os.close(gone)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


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


def _resident_bytes(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
