"""A server with a scripted engine in a process of its own: what the prompt says decides what happens. For tests of faults.

The first id of a prompt is one of `SAY` to `GARBLE`, the second one a number: of tokens that are said first. A reply is the rest
of the prompt, then 100, 101, and so on, so every one is known beforehand. The text of an id is `<id>`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from optiq.serve.http import service
from optiq.serve.http.app import make_app
from optiq.serve.http.context import Context, Limits, Places, Served
from optiq.serve.http.guard import Access
from optiq.serve.http.metrics import Measured, Metrics
from optiq.serve.http.problem import Problem, Surface
from optiq.serve.http.runner import Server, bind, make_server, url_of
from optiq.serve.http.shelf import Shelf
from optiq.serve.opening import Opened
from optiq.serve.request import Finished, Request, Token
from optiq.serve.scheduler import Policy
from optiq.serve.scripted import Script, ScriptedEngine
from optiq.serve.supervisor import Patience, Plan, Supervisor

SAY, FAIL, RAISE, HANG, ABORT, EXIT, SLOW, REFUSE, STALL, GARBLE = range(1, 11)
STEP_S = 0.02
QUICK = Patience(load_s=60, stall_s=0.8, hang_s=2.0, growth=0, pause_s=0.05, longest_pause_s=0.2, stop_s=2.0)


class Words:
    """A tokenizer of which every id is a word, and every character of a text an id."""

    eos_token_ids = (2,)
    bos_token = None
    has_chat_template = False
    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(f"<{token}>" for token in ids)

    def __len__(self) -> int:
        return 1 << 20


class Faulty(ScriptedEngine):
    """Scripts from prompts; what the worker shall suffer happens in the step after the tokens."""

    def step(self) -> list[Any]:
        for job, script in list(self._jobs.values()):
            kind = job.request.prompt[0]
            if len(job.ids) < len(script.ids) or kind not in (HANG, ABORT, EXIT, STALL, GARBLE):
                continue
            if kind == ABORT:
                os.abort()
            if kind == EXIT:
                os._exit(7)
            if kind == GARBLE:
                os.write(int(sys.argv[2]), b"\x00\x00\x00\x04oops")
            time.sleep(1.2 if kind == STALL else 3600)
        return super().step()

    def submit(self, request: Request, name: str | None = None) -> str:
        if request.prompt[0] == REFUSE:
            raise ValueError("a bug in taking in")
        return super().submit(request, name)


def script_of(request: Request) -> Script:
    """What the engine does with a request."""
    kind, count, *rest = request.prompt
    ids = [*rest, *range(100, 100 + count)][:count]
    if kind == FAIL:
        return Script(ids, error="the parser broke")
    if kind == RAISE:
        return Script(ids, crash=RuntimeError("the step broke"))
    return Script(ids, step_s=STEP_S if kind == SLOW else 0.0)


def open_scripted(rows: int = 4, waiting: int = 4, load_s: float = 0.0) -> Opened:
    """For the worker."""
    time.sleep(load_s)
    return Opened(Faulty(Words(), script_of, Policy(max_rows=rows, max_waiting=waiting)))


def open_broken(path: str) -> Opened:
    """An engine that cannot be opened while a file is there; as a bug where the file says so."""
    if not Path(path).exists():
        return open_scripted()
    if Path(path).read_text() == "bug":
        raise RuntimeError("a bug in loading")
    from optiq.errors import ModelError

    raise ModelError("the weights are damaged; download them again")


def plan(rows: int = 4, waiting: int = 4, **options: Any) -> Plan:
    """A scripted engine's process."""
    arguments = {"rows": rows, "waiting": waiting, **options}
    return Plan(arguments, most=rows + waiting, factory="serving:open_scripted")


@asynccontextmanager
async def supervised(chosen: Plan | None = None, patience: Patience = QUICK) -> Any:
    """A supervisor that is up, and nothing left of it afterwards."""
    supervisor = Supervisor(chosen or plan(), patience)
    await supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop()


def ask(kind: int, count: int, *ids: int, **options: Any) -> Request:
    """A request for a reply of a kind; it ends after its tokens where nothing else happens."""
    most = options.pop("max_tokens", count + (kind not in (SAY, SLOW)))
    return Request((kind, count, *ids), max_tokens=most, **options)


async def reply(supervisor: Supervisor, request: Request) -> tuple[list[int], Finished]:
    """The ids and the end of a request."""
    ids: list[int] = []
    async for event in supervisor.run(request):
        if isinstance(event, Token):
            ids.append(event.id)
        elif isinstance(event, Finished):
            return ids, event
    raise AssertionError("the request has no end")


async def until(true: Any, seconds: float = 20.0) -> float:
    """Wait until something holds; the seconds that it took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, "it did not happen in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - start


def surface() -> Surface:
    """A protocol of one route: POST /text with `Request`'s fields streams the reply's text, or returns it whole."""

    def routes(context: Context) -> list[Route]:
        async def text(http: HttpRequest) -> Response:
            body = json.loads(await http.body())
            served = (await context.models.open(body.pop("model", None), body.pop("adapter", None))).served
            repeat, stream = body.pop("repeat", 1), body.pop("stream", True)
            request = ask(*body["prompt"], max_tokens=body.get("max_tokens", 16))
            if body.get("bug"):
                raise RuntimeError("secret words of the prompt")

            async def pieces() -> AsyncIterator[str]:
                async with aclosing(served.gateway.run(request)) as events:
                    async for event in events:
                        if isinstance(event, Token | Finished):
                            yield event.text * repeat
                        if isinstance(event, Finished) and event.error:
                            yield f"!{event.error}!"

            found = pieces()
            first = await anext(found)
            if not stream:
                return PlainTextResponse(first + "".join([piece async for piece in found]))

            async def all_pieces() -> AsyncIterator[str]:
                yield first
                async for piece in found:
                    yield piece

            return StreamingResponse(all_pieces())

        return [Route("/text", text, methods=["POST"])]

    def error(problem: Problem) -> Response:
        return JSONResponse({"text_error": problem.message, "kind": problem.kind, "id": problem.request_id}, problem.status)

    return Surface("text", ("/text",), routes, error)


@dataclass
class Site:
    """A server that listens."""

    url: str
    engine: Supervisor
    server: Server
    metrics: Metrics
    done: asyncio.Task[None]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=20, trust_env=False, **options)


@asynccontextmanager
async def site(
    chosen: Plan | None = None,
    access: Access | None = None,
    limits: Limits | None = None,
    patience: Patience = QUICK,
    places: Places | None = None,
    aliases: Sequence[str] = (),
    drain_s: float = 5.0,
) -> AsyncIterator[Site]:
    """The application over a scripted engine, on a free port."""
    async with supervised(chosen, patience) as engine:
        metrics = Metrics()
        served = Served("words", 1, Measured(engine, "words", metrics), Words(), context=100, vocabulary=1000)
        context = Context(Shelf(served, aliases), limits or Limits(), places or Places(), metrics)
        app = make_app(context, access or Access(), [service.SURFACE, surface()])
        server, sock = make_server(app, context.limits, drain_s), bind("127.0.0.1", 0)
        server.on_late = engine.stop
        done = asyncio.create_task(server.serve(sockets=[sock]))
        await until(lambda: server.started)
        try:
            yield Site(url_of(sock), engine, server, metrics, done)
        finally:
            server.should_exit = True
            await done
