"""Bodies in, replies out, clients that go away: sizes and times. Pure ASGI; knows no protocol.

A body is read whole before a route runs, under a limit of bytes and one of seconds. From then on the connection is watched: when
the client is gone, or leaves a reply unread for too long, the route's task is cancelled, and with it its requests to the engine.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from optiq.serve.http.context import Limits
from optiq.serve.http.problem import Kind, Problem, Refusal

ABORT = "optiq.abort"  # in the scope: a function that drops the connection with what is unsent; absent in tests
LINGER_S = 2.0  # a client that sends too much is listened to for so long, else it would see a reset instead of the answer


class Gone(Exception):
    """The client went away."""


class Intake:
    """Reads bodies, watches clients.

    Args:
        app: what is below.
        limits: of a request.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(Gone):
            body = await self._read(Headers(scope=scope), receive)
            await _Exchange(scope, body, receive, send, self._limits.write_s).run(self._app)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            Gone: the client is not there any more.
            Refusal: too large, or too slow.
        """
        told, most = headers.get("content-length", ""), self._limits.body_bytes
        size = int(told) if told.isdecimal() else 0
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                while size <= most:
                    part, more = await _part(receive)
                    body += part
                    size = max(size, len(body))
                    if not more:
                        return bytes(body)
        except TimeoutError:
            text = f"the body was not there after {self._limits.body_s:g} s; send it faster"
            raise Refusal(Problem(Kind.TIMEOUT, text)) from None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await _part(receive))[1]:
                    pass
        raise Refusal(Problem(Kind.LARGE, f"the body has {size} bytes or more, expected at most {most}"))


async def _part(receive: Receive) -> tuple[bytes, bool]:
    """A part of a body, and whether more comes."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    return message.get("body", b""), message.get("more_body", False)


class _Exchange:
    """One request whose body is there, until its reply is sent or its client is gone."""

    def __init__(self, scope: Scope, body: bytes, receive: Receive, send: Send, write_s: float) -> None:
        self._scope, self._body = scope, body
        self._receive, self._send, self._write_s = receive, send, write_s
        self._given = self._finished = False
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def run(self, app: ASGIApp) -> None:
        """Run what is below.

        Raises:
            Gone: the client went away; what is below was cancelled.
        """
        self._task = asyncio.current_task()
        watcher = asyncio.create_task(self._watch())
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if self._task is None or not self._gone.is_set():
                raise
            self._task.uncancel()
            raise Gone from None
        finally:
            watcher.cancel()

    async def receive(self) -> Message:
        """The body; then, some day, that the client is gone."""
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass a part of the reply on; a client that does not take it is dropped."""
        try:
            async with asyncio.timeout(self._write_s):
                await self._send(message)
        except TimeoutError:
            self._scope.get(ABORT, lambda: None)()
            self._leave()
            await asyncio.Event().wait()  # for its own end
        self._finished = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        """The client is gone: end what is below, once."""
        if self._task is not None and not self._finished and not self._gone.is_set():
            self._gone.set()
            self._task.cancel()
