"""The HTTP server around an application: uvicorn with limits that it lacks, and an end that drains.

The first SIGTERM or SIGINT stops accepting, lets what runs end and returns; the second one returns at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from optiq.errors import InputError
from optiq.serve.http.context import Limits
from optiq.serve.http.intake import ABORT

HEAD_BYTES = 64 << 10  # of a request's line and headers
BACKLOG = 512
LAST_WORDS_S = 5.0  # to write an error at the end of what could not be finished
KEEP_ALIVE_S = 75  # as common proxies and clients keep connections
_logger = logging.getLogger("optiq.serve.http")


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with a limit of bytes and of seconds for a request's head, and a way to drop it."""

    header_s = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        begun = self._late
        super().data_received(data)
        if begun is not None and begun is self._late:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response(f"The head of a request has more than {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin()
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        self._end()
        super().on_headers_complete()

    def _begin(self) -> None:
        """The head of a request is waited for."""
        if self._late is None:
            self._head_bytes = 0
            self._late = self.loop.call_later(self.header_s, self.transport.abort)

    def _end(self) -> None:
        """It is there."""
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    """uvicorn's server with ends of its own for signals: it returns, and says what it heard."""

    heard = 0
    drain_s: float | None = None
    on_start: Callable[[], None] = staticmethod(lambda: None)
    on_late: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and wait for what runs; what is late then is told so, and gets a little time to tell its client."""
        late = asyncio.create_task(self._end_late(), name="drain")
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    async def _end_late(self) -> None:
        if self.drain_s is not None and self.on_late is not None:
            await asyncio.sleep(self.drain_s)
            await self.on_late()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals ask for the end; without a main thread there are none."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        with contextlib.suppress(ValueError, RuntimeError):
            for number in numbers:
                loop.add_signal_handler(number, self.hear, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def hear(self, number: int) -> None:
        """The first time drain, the second time end."""
        if self.should_exit:
            self.force_exit, self.heard = True, number
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address, which nobody can connect to before it listens.

    Raises:
        InputError: the address is in use, or not this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:  # the latter for a name that no address can have
        told = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} is not an address of this machine ({told})") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address[0], port, *address[2:]))
    except (OSError, OverflowError) as error:
        sock.close()
        told = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot listen on {host} port {port} ({told}); choose another --port") from None
    return sock


def url_of(sock: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: ASGIApp, limits: Limits, drain_s: float | None) -> Server:
    """A server for an application.

    Args:
        app: ASGI.
        limits: seconds for the head of a request.
        drain_s: how long what runs may take to end; None for as long as it takes.
    """
    connection = type("Connection", (Connection,), {"header_s": limits.header_s})
    # What it has to log a client can cause at will, or `edge` has logged already.
    settings: dict[str, Any] = {"lifespan": "off", "log_config": None, "log_level": "critical", "access_log": False}
    config = uvicorn.Config(
        app,
        http=connection,
        ws="none",
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=None if drain_s is None else drain_s + LAST_WORDS_S,  # type: ignore[arg-type]
        **settings,
    )
    server = Server(config)
    server.drain_s = drain_s
    return server
