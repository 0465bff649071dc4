"""A server within the test's process: an engine on a thread, the whole application over it, a real port."""

from __future__ import annotations

import asyncio
import hashlib
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from optiq.models.generation import context_length, generation_config, stop_ids
from optiq.models.load import load, load_tokenizer
from optiq.models.thinking import tags_of
from optiq.serve.engine import Engine, EngineOptions
from optiq.serve.gateway import Unavailable
from optiq.serve.http.app import make_app
from optiq.serve.http.context import Context, Limits, Served
from optiq.serve.http.guard import Access
from optiq.serve.http.shelf import Shelf
from optiq.serve.request import Event, Finished, Load, Request, Serving

T = TypeVar("T")
TINY = Path(__file__).parents[1] / "examples" / "tiny-qwen3.5"


class LocalGateway:
    """An engine on a thread of its own, behind the interface of `optiq.serve.gateway.Gateway`.

    Args:
        make: makes the engine; called on that thread, which owns MLX.
    """

    def __init__(self, make: Callable[[], Serving]) -> None:
        self.ready = True
        self.cancelled: list[str] = []
        self.refused = 0
        self.requests: list[Request] = []
        self._queues: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Event]]] = {}
        self._names = 0
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.engine = self._called(lambda: self._begin(make)).result()

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(getattr(self.engine, "adapters", ()))

    async def run(self, request: Request) -> AsyncGenerator[Event, None]:
        if not self.ready:
            self.refused += 1
            raise Unavailable("the engine is being restarted; try again", retry_after_s=1)
        self._names += 1
        name = f"local-{self._names}"
        self.requests.append(request)
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._queues[name] = (asyncio.get_running_loop(), events)
        ended = False
        try:
            await asyncio.wrap_future(self._called(lambda: self.engine.submit(request, name)))
            while not ended:
                event = await events.get()
                ended = isinstance(event, Finished)
                yield event
        finally:
            del self._queues[name]
            if not ended:
                self.cancelled.append(name)
                self._work.put(lambda: self.engine.cancel(name))

    async def load(self) -> Load:
        return await asyncio.wrap_future(self._called(lambda: self.engine.load()))

    async def mount(self, name: str, path: str) -> None:
        await asyncio.wrap_future(self._called(lambda: self.engine.mount(name, path)))  # type: ignore[attr-defined]

    async def unmount(self, name: str) -> None:
        await asyncio.wrap_future(self._called(lambda: self.engine.unmount(name)))  # type: ignore[attr-defined]

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _begin(self, make: Callable[[], Serving]) -> Serving:
        self.engine = make()
        return self.engine

    def _called(self, function: Callable[[], T]) -> Future[T]:
        """The result of a call on the engine's thread."""
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._work.put(call)
        return future

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            while self._work.empty() and not self.engine.idle:
                self._step()
            if not self.engine.idle:
                self._step()

    def _step(self) -> None:
        for event in self.engine.step():
            loop, events = self._queues.get(event.request, (None, None))
            if loop is not None and events is not None:
                loop.call_soon_threadsafe(events.put_nowait, event)


def tiny_served(make: Callable[[], Serving], tokenizer: Any, **changes: Any) -> Served:
    """The embedded model over any engine."""
    template = (TINY / "chat_template.jinja").read_text()
    served = Served(
        "tiny",
        1_700_000_000,
        LocalGateway(make),
        tokenizer,
        template=template,
        template_sha256=hashlib.sha256(template.encode()).hexdigest(),
        tags=tags_of(template),
        context=context_length(TINY) or 0,
        stop_ids=stop_ids(TINY, tokenizer),
        generation_config=generation_config(TINY),
        max_tokens=64,
        vocabulary=4096,
    )
    return replace(served, **changes)


def tokenizer_of() -> Any:
    """The embedded model's."""
    return load_tokenizer(TINY)


def tiny_engine() -> Engine:
    """The embedded model."""
    return Engine(*load(TINY), EngineOptions(context=context_length(TINY) or 0, memory_bytes=1 << 30))


def app_of(served: Served, limits: Limits | None = None) -> Any:
    """The whole application over one model."""
    return make_app(Context(Shelf(served), limits or Limits(ping_s=1.0)), Access())


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of a server on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
