"""An engine in a process of its own, kept alive: a `Gateway` over it. Asynchronous, pure Python.

    down --spawn--> loading --up--> serving --ends, hangs, cannot be read--> down, and again after a pause

The child (`serve.worker`) is at one end of a socket pair that nobody else can reach. It is killed when it says nothing for too
long: silence is counted in turns of the event loop, so that a machine that slept, or a server that was stopped, does not take
its own absence for the child's. What ran when a child was lost raises `Unavailable`; the text that it had told is lost
with it. Adapters that were mounted are mounted again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optiq.errors import InputError, ModelError, OptiqError, ResourceError
from optiq.serve.gateway import Unavailable
from optiq.serve.messages import HEAD, Value, from_request, length_of, pack, to_error, to_event, to_load, unpack
from optiq.serve.request import Event, Finished, Load, Reason, Refused, Request

_logger = logging.getLogger("optiq.serve")

ENGINE = "optiq.serve.opening:open_engine"
TICK_S = 0.25


@dataclass(frozen=True)
class Plan:
    """What the child runs.

    Args:
        arguments: of the function that opens the engine, as JSON.
        adapters: directories by name, mounted at the start.
        most: requests that may be in the engine at once, waiting ones included; more are refused without asking it.
        factory: the function, `module:name`; it returns an `optiq.serve.opening.Opened`.
    """

    arguments: Mapping[str, Any]
    adapters: Mapping[str, str] = field(default_factory=dict)
    most: int = 272
    factory: str = ENGINE


@dataclass(frozen=True)
class Patience:
    """How long things may take, in seconds.

    Args:
        load_s: until the engine is up.
        stall_s: without a sign of the engine, before it counts as not ready.
        hang_s: without a sign of the engine while it has work, before it is killed.
        growth: both grow by so many times the seconds of loading: what is slow to load is slow to run.
        pause_s: before the first restart; doubles with each failure in a row.
        longest_pause_s: and no longer than this.
        steady_s: after so long a life the next failure counts as a first one.
        stop_s: for the child to end when the server does.
    """

    load_s: float = 1800.0
    stall_s: float = 10.0
    hang_s: float = 60.0
    growth: float = 4.0
    pause_s: float = 0.25
    longest_pause_s: float = 4.0
    steady_s: float = 30.0
    stop_s: float = 2.0


class _Child:
    """One process and the way to it."""

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.process, self.reader, self.writer = process, reader, writer
        self.silent_s = 0.0

    def send(self, message: Value) -> None:
        """Hand over a message; what a lost child misses is told by its end."""
        if not self.writer.is_closing():
            self.writer.write(pack(message))

    async def receive(self) -> Value:
        """The next message.

        Raises:
            EOFError, OSError: the child is gone.
            FormatError: it sends what cannot be read.
        """
        length = length_of(await self.reader.readexactly(HEAD.size))
        message = unpack(await self.reader.readexactly(length))
        self.silent_s = 0.0
        return message

    async def end(self, wait_s: float) -> int:
        """Close the way to it, which ends it; kill it where it does not end in time. Its exit code."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
        until = time.monotonic() + wait_s
        while self.process.poll() is None and time.monotonic() < until:
            await asyncio.sleep(0.01)
        self.process.kill()
        return await asyncio.to_thread(self.process.wait)


class Supervisor:
    """A gateway to an engine that is started again whenever it is lost.

    Args:
        plan: what to run.
        patience: how long things may take.
    """

    def __init__(self, plan: Plan, patience: Patience | None = None) -> None:
        self.plan, self.patience = plan, patience or Patience()
        self.restarts = 0
        self.load_s = 0.0
        self._child: _Child | None = None
        self._up = False
        self._flights: dict[str, asyncio.Queue[Event | OptiqError]] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._adapters = dict(plan.adapters)
        self._keeper: asyncio.Task[None] | None = None
        self._failure = "the engine is not started"

    @property
    def ready(self) -> bool:
        """Whether the engine is up and makes progress."""
        return self._up and self._child is not None and self._child.silent_s < self._limit(self.patience.stall_s)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the mounted adapters."""
        return tuple(self._adapters)

    @property
    def pid(self) -> int | None:
        """Of the engine's process; None while there is none."""
        return None if self._child is None else self._child.process.pid

    @property
    def running(self) -> int:
        """Requests that have not ended."""
        return len(self._flights)

    async def start(self) -> None:
        """Start the engine and wait until it is up.

        Raises:
            OptiqError: it cannot be opened; nothing is left running.
        """
        child = await self._spawn()
        try:
            await self._open(child, first=not self.load_s)
        except BaseException:
            await child.end(0.0)
            raise
        self._keeper = asyncio.create_task(self._keep(child), name="engine")

    async def stop(self) -> None:
        """End the engine; requests that run raise `Unavailable`."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None

    async def run(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of one request; see `Gateway.run`."""
        child = self._serving()
        if len(self._flights) >= self.plan.most:
            raise Refused(Reason.QUEUE, f"{len(self._flights)} requests run and wait, which is the limit; try again later")
        name = f"r{next(self._numbers)}"
        queue = self._flights[name] = asyncio.Queue()
        child.send(["submit", name, from_request(request)])
        try:
            while True:
                event = await queue.get()
                if isinstance(event, OptiqError):
                    raise event
                if isinstance(event, Finished):
                    self._flights.pop(name, None)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            if self._flights.pop(name, None) is not None:
                child.send(["cancel", name])

    async def load(self) -> Load:
        """How busy the engine is."""
        return to_load((await self._ask("load"))["load"])

    async def mount(self, name: str, path: str) -> None:
        """Make an adapter usable by requests under a name."""
        await self._ask("mount", name, path)
        self._adapters[name] = path

    async def unmount(self, name: str) -> None:
        """Forget an adapter."""
        await self._ask("unmount", name)
        self._adapters.pop(name, None)

    def _serving(self) -> _Child:
        if self._child is None or not self._up:
            raise Unavailable(f"{self._failure}; try again soon", self._retry_s())
        return self._child

    def _retry_s(self) -> float:
        """When the engine may be back."""
        return max(1.0, self.patience.pause_s + self.load_s)

    def _limit(self, seconds: float) -> float:
        return seconds + self.patience.growth * self.load_s

    async def _ask(self, what: str, *arguments: str) -> Any:
        """A question to the engine, and its answer."""
        child, number = self._serving(), next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        child.send(["ask", number, what, list(arguments)])
        try:
            return await answer
        finally:
            self._answers.pop(number, None)

    async def _spawn(self) -> _Child:
        """Start the process and say what it is to run."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "optiq.serve.worker", str(os.getpid()), str(theirs.fileno())]
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
            except OSError as error:
                ours.close()
                raise ResourceError(
                    f"the engine's process cannot be started ({error.strerror}); free memory or processes"
                ) from None
        reader, writer = await asyncio.open_connection(sock=ours)
        child = _Child(process, reader, writer)
        child.send(["start", self.plan.factory, dict(self.plan.arguments), list(self._adapters.items())])
        return child

    async def _open(self, child: _Child, first: bool) -> None:
        """Wait until the engine is up.

        Args:
            child: that was told to start.
            first: whether an adapter that cannot be mounted is a reason not to go on.

        Raises:
            OptiqError: it cannot be opened.
        """
        start = time.monotonic()
        try:
            message = await asyncio.wait_for(child.receive(), self.patience.load_s)
        except TimeoutError:
            raise ResourceError(f"the engine was not up after {self.patience.load_s:g} s; look for what it waits for") from None
        except (EOFError, OSError):
            code = await child.end(self.patience.stop_s)
            raise ModelError(f"the engine ended while it was loading ({_ending(code)}); its last lines stand above") from None
        if message[0] == "failed":
            raise to_error(message[1])
        facts = message[1]
        for name, error in facts["failed"]:
            if first:
                raise InputError(f"adapter {name!r}: {to_error(error)}")
            self._adapters.pop(name, None)
            _logger.warning("adapter %r is not there any more: %s", name, to_error(error))
        self.load_s = time.monotonic() - start
        self._child, self._up = child, True

    async def _keep(self, child: _Child | None) -> None:
        """Serve, and start again after each loss, until cancelled."""
        failures, born = 0, time.monotonic()
        try:
            while True:
                try:
                    if child is None:
                        child = await self._spawn()
                        await self._open(child, first=False)
                        born = time.monotonic()
                        self.restarts += 1
                        _logger.warning("the engine is back after %.1f s of loading", self.load_s)
                    self._failure = await self._serve(child)
                except OptiqError as error:
                    self._failure = f"the engine cannot be started: {error}"
                except Exception:  # whatever it is, an engine is wanted
                    _logger.exception("supervising the engine failed")
                    self._failure = "the engine was lost"
                await self._lose(child)
                child = None
                failures = 1 if time.monotonic() - born > self.patience.steady_s else failures + 1
                pause_s = min(self.patience.longest_pause_s, self.patience.pause_s * 2 ** (failures - 1))
                _logger.error("%s; starting it again in %.2g s", self._failure, pause_s)
                await asyncio.sleep(pause_s)
        finally:
            self._failure = "the server is stopping"
            await asyncio.shield(self._lose(child))

    async def _lose(self, child: _Child | None) -> None:
        """A child is of no use any more: end it, and tell those who wait for it."""
        self._child, self._up = None, False
        text = f"{self._failure}, and this request was lost with it; try again"
        for queue in self._flights.values():
            queue.put_nowait(Unavailable(text, self._retry_s()))
        self._flights.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Unavailable(text, self._retry_s()))
        self._answers.clear()
        if child is not None:
            await child.end(0.0)

    async def _serve(self, child: _Child) -> str:
        """Hand on what the child tells until it is lost; how it was lost."""
        watch = asyncio.create_task(self._watch(child), name="watchdog")
        try:
            while True:
                self._take(await child.receive())
        except (EOFError, OSError):
            pass
        except OptiqError as error:
            return f"the engine was stopped: {error}"
        finally:
            watch.cancel()
        if child.silent_s >= self._limit(self.patience.hang_s):
            return f"the engine hung for {child.silent_s:.0f} s and was killed"
        return f"the engine ended ({_ending(await child.end(self.patience.stop_s))})"

    async def _watch(self, child: _Child) -> None:
        """Kill a child that says nothing for too long."""
        last = time.monotonic()
        while child.silent_s < self._limit(self.patience.hang_s):
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            child.silent_s += min(now - last, 2 * TICK_S)  # a longer gap is our own absence
            last = now
        child.process.kill()

    def _take(self, message: Value) -> None:
        """Hand on one message."""
        match message:
            case ["events", events]:
                for event in map(to_event, events):
                    if (queue := self._flights.get(event.request)) is not None:
                        queue.put_nowait(event)
            case ["refused", name, error]:
                if (queue := self._flights.pop(name, None)) is not None:
                    queue.put_nowait(to_error(error))
            case ["answer", number, value, *error]:
                answer = self._answers.get(number)
                if answer is None or answer.done():
                    return
                if error:
                    answer.set_exception(to_error(error[0]))
                else:
                    answer.set_result(value)


def _ending(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
