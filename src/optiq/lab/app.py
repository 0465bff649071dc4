"""The workbench as a web application: the pages' table, the guard around it, and the server that runs it.

browser -> Guard -> NiceGUI -> pages over a Workbench
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.types import ASGIApp

from optiq.errors import ResourceError
from optiq.lab.pages import PAGES
from optiq.lab.safety import Guard, own_hosts
from optiq.lab.workbench import Workbench

STATIC = Path(__file__).parent / "static"


def build(bench: Workbench, host: str, port: int) -> ASGIApp:
    """The guarded application.

    NiceGUI keeps one registry of pages per process, so this is called once in a process.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        ticking = asyncio.create_task(bench.keep_ticking())
        bench.later(bench.library.refresh())
        yield
        ticking.cancel()
        await bench.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    nicegui_app.add_static_files("/lab", STATIC)
    ui.add_head_html('<link rel="stylesheet" href="/lab/lab.css" />', shared=True)
    for _, page in PAGES.items():
        page.register(bench)
    ui.run_with(
        app,
        title="optiq lab",
        favicon=STATIC / "icon.svg",
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        language="en-US",
        reconnect_timeout=60.0,  # a page whose machine was busy goes on where it was, instead of loading anew
        gzip_middleware_factory=None,  # nothing is far away, and the guard reads pages
    )
    return Guard(app, own_hosts(host, port), bench.place.token(), port)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ResourceError: the address is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ResourceError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port, 0 for a free one"
        ) from None
    return found


def serve(bench: Workbench, host: str, port: int, up: Callable[[str], None]) -> None:
    """Run until a signal.

    Args:
        up: told the address, with its token, when the first page can be asked for.

    Raises:
        ResourceError: the address is taken.
    """
    sock = listen(host, port)
    number = sock.getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    logging.getLogger("nicegui").setLevel(logging.ERROR)
    config = uvicorn.Config(
        build(bench, host, number), log_level="error", access_log=False, timeout_graceful_shutdown=1, ws_max_size=8 << 20
    )
    server = uvicorn.Server(config)

    async def run() -> None:
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if server.started:
            up(f"http://{name}:{number}/?token={bench.place.token()}")
        await task

    asyncio.run(run())
