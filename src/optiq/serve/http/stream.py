"""Replies that arrive: server-sent events, and the watch for clients that leave. Knows no protocol.

A stream begins with its first frame, so what goes wrong before that is still an answer with a status of its own. Where the
first frame lets wait, the stream begins without it, and says from time to time that it is alive.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

PING = b": ping\n\n"  # a comment, which clients ignore
HEADERS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


def frame(data: Any, event: str = "") -> bytes:
    """One event; its data is JSON."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")


class EventStream(Response):
    """A stream of frames.

    Args:
        frames: closed when the client leaves or takes nothing for `write_s`.
        broken: the last frames, where an exception ends a stream that has begun.
        ping: the frame that says that the stream is alive; a comment does so before the first frame.
        ping_s: sent after so many seconds without another.
        write_s: seconds for which a client may leave a frame unread.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        broken: Callable[[Exception], bytes],
        *,
        ping: bytes = PING,
        ping_s: float,
        write_s: float,
    ) -> None:
        self.status_code, self.background = 200, None
        self.raw_headers = list(HEADERS)
        self._frames, self._broken = frames, broken
        self._ping, self._ping_s, self._write_s = ping, ping_s, write_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = asyncio.create_task(_left(receive))
        try:
            await self._send(left, send)
        finally:
            left.cancel()
            await self._frames.aclose()

    async def _send(self, left: asyncio.Task[None], send: Send) -> None:
        begun, ping = False, PING
        while True:
            following = asyncio.ensure_future(anext(self._frames))
            try:
                while not (await asyncio.wait({following, left}, timeout=self._ping_s, return_when="FIRST_COMPLETED"))[0]:
                    begun = await self._write(send, ping, begun)
                if left.done():
                    return
                begun = await self._write(send, await following, begun)
                ping = self._ping
            except StopAsyncIteration:
                await self._write(send, b"", begun, more=False)
                return
            except TimeoutError:
                return  # the client takes nothing: the server closes a reply that is not whole
            except Exception as error:
                if not begun:
                    raise
                await self._write(send, self._broken(error), begun, more=False)
                return
            finally:
                following.cancel()
                await asyncio.wait({following})

    async def _write(self, send: Send, data: bytes, begun: bool, more: bool = True) -> bool:
        async with asyncio.timeout(self._write_s):
            if not begun:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": data, "more_body": more})
        return True


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """A result, or `ClientDisconnect` as soon as nobody waits for it any more; the work is cancelled then.

    The body must have been read.
    """
    task, left = asyncio.ensure_future(work), asyncio.create_task(_left(request.receive))
    try:
        await asyncio.wait({task, left}, return_when="FIRST_COMPLETED")
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, left):
            one.cancel()
        await asyncio.wait({task, left})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
