"""Several models, one engine at a time: requests wait in line for theirs, and an engine that nobody uses is ended.

    line of requests -> head of it: its model is loaded? it runs : what runs ends, the engine is changed, it runs

The line keeps its order, so that no model's requests can keep another's out. Pure Python; engines are `serve.supervisor`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from optiq.errors import OptiqError
from optiq.serve.gateway import Unavailable
from optiq.serve.request import Event, Load, Reason, Refused, Request
from optiq.serve.supervisor import Supervisor

RETRY_S = 5.0
_logger = logging.getLogger("optiq.serve")


@dataclass(frozen=True)
class _Waiting:
    """A request in the line."""

    engine: Supervisor
    admitted: asyncio.Future[None]


class Switch:
    """Who may use which engine now.

    Args:
        idle_s: an engine that nobody has used for so long is ended; 0 keeps it.
        most: requests that may stand in the line.
    """

    def __init__(self, idle_s: float = 0.0, most: int = 256) -> None:
        self._idle_s, self._most = idle_s, most
        self._line: deque[_Waiting] = deque()
        self._current: Supervisor | None = None
        self._users, self._used = 0, time.monotonic()
        self._change: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the engine makes progress; none is as good, for the next request brings one."""
        return self._change is None and (self._current is None or self._current.ready)

    async def start(self, engine: Supervisor) -> None:
        """Begin with an engine.

        Raises:
            OptiqError: it cannot be opened.
        """
        await engine.start()
        self._current, self._used = engine, time.monotonic()
        if self._idle_s:
            self._timer = asyncio.create_task(self._end_when_idle(), name="idle")

    async def stop(self) -> None:
        """End the engine; those in the line raise `Unavailable`."""
        for task in (self._timer, self._change):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._fail(None, Unavailable("the server is stopping; try again later", RETRY_S))
        if self._current is not None:
            await self._current.stop()

    @asynccontextmanager
    async def using(self, engine: Supervisor) -> AsyncIterator[None]:
        """A time in which this engine is loaded and stays so.

        Raises:
            Refused: too many wait.
            Unavailable: it could not be loaded.
        """
        if len(self._line) >= self._most:
            raise Refused(Reason.QUEUE, f"{len(self._line)} requests wait for a model, which is the limit; try again later")
        waiting = _Waiting(engine, asyncio.get_running_loop().create_future())
        self._line.append(waiting)
        self._advance()
        try:
            await waiting.admitted
        except BaseException:
            if waiting.admitted.done() and not waiting.admitted.cancelled() and waiting.admitted.exception() is None:
                self._leave()
            elif waiting in self._line:
                self._line.remove(waiting)
                self._advance()
            raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._users, self._used = self._users - 1, time.monotonic()
        self._advance()

    def _advance(self) -> None:
        """Admit from the head of the line for as long as it goes on; begin a change where one is due."""
        while self._line and self._change is None:
            head = self._line[0]
            if head.engine is self._current:
                self._line.popleft()
                if not head.admitted.done():
                    self._users += 1
                    head.admitted.set_result(None)
            elif self._users == 0:
                self._change = asyncio.create_task(self._load(head.engine), name="change of models")
            else:
                return

    async def _load(self, engine: Supervisor) -> None:
        """End the present engine and open another one."""
        try:
            if self._current is not None:
                before, self._current = self._current, None
                await before.stop()
            await engine.start()
            self._current, self._used = engine, time.monotonic()
        except Exception as error:  # whatever it is, those in the line have to hear of it
            _logger.error("a model cannot be loaded: %s", error, exc_info=not isinstance(error, OptiqError))
            told = error if isinstance(error, OptiqError) else "the log says more"
            self._fail(engine, Unavailable(f"the model cannot be loaded: {told}", RETRY_S))
        finally:
            self._change = None
        self._advance()

    def _fail(self, engine: Supervisor | None, error: Unavailable) -> None:
        """Tell those who wait for an engine, or for any."""
        for waiting in [one for one in self._line if engine is None or one.engine is engine]:
            self._line.remove(waiting)
            if not waiting.admitted.done():
                waiting.admitted.set_exception(Unavailable(str(error), error.retry_after_s))

    async def _end_when_idle(self) -> None:
        while True:
            await asyncio.sleep(max(0.05, self._idle_s / 4))
            idle = not self._users and not self._line and self._change is None
            if idle and self._current is not None and time.monotonic() - self._used > self._idle_s:
                _logger.info("the engine is ended after %g s without requests; the next one starts it", self._idle_s)
                self._change = asyncio.create_task(self._unload(), name="unload")

    async def _unload(self) -> None:
        assert self._current is not None
        before, self._current = self._current, None
        try:
            await before.stop()
        finally:
            self._change = None
        self._advance()


class Switched:
    """The gateway of one model behind a switch.

    Args:
        engine: of the model.
        switch: that all models of the server share.
    """

    def __init__(self, engine: Supervisor, switch: Switch) -> None:
        self.engine, self._switch = engine, switch

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now, or after loading."""
        return self._switch.ready

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the mounted adapters."""
        return self.engine.adapters

    @property
    def restarts(self) -> int:
        """Times that the engine was lost and came back."""
        return self.engine.restarts

    @property
    def pid(self) -> int | None:
        """Of the engine's process; None while there is none."""
        return self.engine.pid

    async def run(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of one request, when its model's turn has come."""
        async with self._switch.using(self.engine), aclosing(self.engine.run(request)) as events:
            async for event in events:
                yield event

    async def load(self) -> Load:
        """How busy the engine is; raises `Unavailable` where it is not loaded."""
        return await self.engine.load()

    async def mount(self, name: str, path: str) -> None:
        """Make an adapter usable; the model is loaded for it."""
        async with self._switch.using(self.engine):
            await self.engine.mount(name, path)

    async def unmount(self, name: str) -> None:
        """Forget an adapter; the model is loaded for it."""
        async with self._switch.using(self.engine):
            await self.engine.unmount(name)
