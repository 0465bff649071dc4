"""The engine's process: `python -m optiq.serve.worker PARENT FD` obeys what comes over a socket and tells what happens.

    start    engine, arguments, adapters            up        {"adapters", "failed"}      the first answer to `start`
    submit   name, request                          failed    error                      the other one; the process ends
    cancel   name                                   refused   name, error                instead of any event
    ask      number, what, arguments                answer    number, value | error      to `load`, `mount`, `unmount`
                                                    events    [event, ...]               of one step
                                                    idle      -                          every `IDLE_S` without work

Messages are those of `serve.messages`. The main thread owns MLX. Another one reads, so that this process ends with its parent
even while a step hangs: its socket closes then, and where the system can tell of a parent's death (Linux), that kills too.
Silence while there is work means that a step hangs; the parent judges.

The engine comes from a function `module:name` that is called with the arguments and returns an `Opened`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from optiq.errors import OptiqError
from optiq.serve.messages import HEAD, Value, from_error, from_event, from_load, length_of, pack, to_request, unpack
from optiq.serve.opening import Opened
from optiq.serve.request import Finish, Finished, Usage

IDLE_S = 0.5
EXIT_LOST = 3  # the parent is gone
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Line:
    """Messages over a socket: read by a thread of its own, written by whoever calls `send`."""

    def __init__(self, sock: socket.socket, lost: Callable[[], None]) -> None:
        self._sock, self._lost = sock, lost
        self._found: queue.SimpleQueue[Value] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True, name="messages").start()

    def receive(self, wait_s: float) -> Iterator[Value]:
        """The messages that are there; where there are none, the next one, waiting so long for it."""
        try:
            yield self._found.get(timeout=wait_s) if wait_s else self._found.get_nowait()
            while True:
                yield self._found.get_nowait()
        except queue.Empty:
            return

    def send(self, message: Value) -> None:
        """Write a message."""
        try:
            self._sock.sendall(pack(message))
        except OSError:
            self._lost()

    def _read(self) -> None:
        try:
            with self._sock.makefile("rb") as stream:
                while head := stream.read(HEAD.size):
                    self._found.put(unpack(stream.read(length_of(head))))
        except (OSError, OptiqError):
            traceback.print_exc()
        self._lost()


class Worker:
    """Steps an engine and obeys messages in between.

    Args:
        opened: the engine.
        line: to the parent.
    """

    def __init__(self, opened: Opened, line: Line) -> None:
        self._engine, self._makers, self._line = opened.engine, dict(opened.makers), line

    def run(self) -> None:
        """Until the process ends; what a step raises ends it too."""
        while True:
            idle = self._engine.idle
            for message in self._line.receive(IDLE_S if idle else 0.0):
                self._obey(message)
            events = self._engine.step() if not self._engine.idle else []
            if events:
                self._line.send(["events", [from_event(event) for event in events]])
            elif self._engine.idle:
                self._line.send(["idle"])

    def _obey(self, message: Value) -> None:
        match message:
            case ["submit", name, request]:
                self._submit(name, request)
            case ["cancel", name]:
                self._engine.cancel(name)
            case ["ask", number, what, arguments]:
                try:
                    self._line.send(["answer", number, self._answer(what, arguments)])
                except OptiqError as error:
                    self._line.send(["answer", number, None, from_error(error)])

    def _submit(self, name: str, request: dict[str, Any]) -> None:
        """Take a request in; whatever is wrong with it is its own."""
        try:
            self._engine.submit(to_request(request, self._makers), name)
        except OptiqError as error:
            self._line.send(["refused", name, from_error(error)])
        except Exception as error:
            traceback.print_exc()
            ended = Finished(name, Finish.FAILED, Usage(), error=f"{type(error).__name__}: {error}".splitlines()[0])
            self._line.send(["events", [from_event(ended)]])

    def _answer(self, what: str, arguments: list[str]) -> Any:
        if what == "mount":
            self._engine.mount(*arguments)
        elif what == "unmount":
            self._engine.unmount(*arguments)
        return {"load": from_load(self._engine.load()), "adapters": list(self._engine.adapters)}


def die_with(parent: int) -> None:
    """Be killed when the parent ends, where the system does that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could be asked for
        os._exit(EXIT_LOST)


def start(line: Line) -> Worker:
    """Obey the first message: open the engine, mount its adapters, say so.

    Raises:
        OptiqError: the engine cannot be opened.
    """
    factory, arguments, adapters = next(line.receive(60.0))[1:]
    module, _, function = factory.partition(":")
    opened: Opened = getattr(importlib.import_module(module), function)(**arguments)
    failed = []
    for name, path in adapters:
        try:
            opened.engine.mount(name, path)
        except OptiqError as error:
            failed.append([name, from_error(error)])
    line.send(["up", {"adapters": list(opened.engine.adapters), "failed": failed}])
    return Worker(opened, line)


def main() -> None:
    """The whole life of the process; signals of a terminal or a service manager are for the parent, which drains."""
    parent, descriptor = map(int, sys.argv[1:3])
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.dup2(2, 1)  # standard output is the parent's
    line = Line(socket.socket(fileno=descriptor), lambda: os._exit(EXIT_LOST))
    try:
        worker = start(line)
    except OptiqError as error:
        line.send(["failed", from_error(error)])
        os._exit(2)
    try:
        worker.run()
    except Exception:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
