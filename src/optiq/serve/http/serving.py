"""A server from its parts: socket, engine, application; up until a signal, then drained. No protocol, no command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from optiq.serve.http.app import make_app
from optiq.serve.http.context import Context, Limits, Places
from optiq.serve.http.facts import Choices, read_facts
from optiq.serve.http.guard import Access
from optiq.serve.http.metrics import Measured, Metrics
from optiq.serve.http.runner import bind, make_server, url_of
from optiq.serve.http.shelf import Shelf
from optiq.serve.supervisor import Patience, Plan, Supervisor


@dataclass(frozen=True)
class Setup:
    """What is served, and to whom.

    Args:
        path: of the model.
        name: how clients name it.
        plan: of its engine.
        access: who may ask, and the address.
        port: 0 for a free one.
        choices: for requests that do not say.
        aliases: further names of the model.
        places: of adapters that may be mounted while it runs.
        limits: of a request.
        patience: with the engine.
        drain_s: how long requests may take to end when the server does; None for as long as it takes.
    """

    path: Path
    name: str
    plan: Plan
    access: Access = Access()
    port: int = 8080
    choices: Choices = Choices()
    aliases: tuple[str, ...] = ()
    places: Places = Places()
    limits: Limits = Limits()
    patience: Patience = field(default_factory=Patience)
    drain_s: float | None = 60.0


async def serve(setup: Setup, up: Callable[[str, Supervisor], None]) -> int:
    """Serve until a signal.

    Args:
        setup: what and to whom.
        up: called with the URL and the engine once requests are answered.

    Returns:
        0, or the number of the second signal, which did not let requests end.

    Raises:
        OptiqError: the address is taken, or the engine cannot be opened.
    """
    sock = bind(setup.access.host, setup.port)
    supervisor = Supervisor(setup.plan, setup.patience)
    try:
        await supervisor.start()
        metrics = Metrics()
        served = read_facts(setup.path, setup.name, Measured(supervisor, setup.name, metrics), setup.choices)
        context = Context(Shelf(served, setup.aliases), setup.limits, setup.places, metrics)
        app = make_app(context, setup.access)
        server = make_server(app, setup.limits, setup.drain_s)
        server.on_start = lambda: up(url_of(sock), supervisor)
        await server.serve(sockets=[sock])
        return server.heard
    finally:
        sock.close()
        await supervisor.stop()
