"""Replies that arrive, as server-sent events. Knows no protocol.

A stream begins with its first frame, so what goes wrong before that is still an answer with a status of its own. Where the
first frame lets wait, the stream begins without it, and says from time to time that it is alive.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from optiq.errors import OptiqError

_log = logging.getLogger(__name__)

PING = b": ping\n\n"  # a comment, which clients ignore
HEADERS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


def frame(data: Any, event: str = "") -> bytes:
    """One event; its data is JSON."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")


class EventStream(Response):
    """A stream of frames. Whoever cancels it (`intake`, when the client is gone) closes them.

    Args:
        frames: of the reply.
        broken: the last frames, where an exception ends a stream that has begun.
        ping: the frame that says that the stream is alive; a comment does so before the first frame.
        ping_s: sent after so many seconds without another.
    """

    def __init__(
        self, frames: AsyncGenerator[bytes, None], broken: Callable[[Exception], bytes], *, ping_s: float, ping: bytes = PING
    ) -> None:
        self.status_code, self.background = 200, None
        self.raw_headers = list(HEADERS)
        self._frames, self._broken = frames, broken
        self._ping, self._ping_s = ping, ping_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, ping = False, PING
        following = asyncio.ensure_future(anext(self._frames))
        try:
            while True:
                if not (await asyncio.wait({following}, timeout=self._ping_s))[0]:
                    begun = await self._write(send, ping, begun)
                    continue
                begun, ping = await self._write(send, following.result(), begun), self._ping
                following = asyncio.ensure_future(anext(self._frames))
        except StopAsyncIteration:
            await self._write(send, b"", begun, more=False)
        except Exception as error:
            if not begun:
                raise
            if not isinstance(error, OptiqError):
                _log.error("a stream failed", exc_info=error)
            await self._write(send, self._broken(error), begun, more=False)
        finally:
            following.cancel()
            await asyncio.wait({following})
            await self._frames.aclose()

    async def _write(self, send: Send, data: bytes, begun: bool, more: bool = True) -> bool:
        if not begun:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": data, "more_body": more})
        return True
