"""A server from its parts: socket, engines, application; up until a signal, then drained. No protocol, no command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from optiq.models.generation import context_length
from optiq.serve.gateway import Gateway
from optiq.serve.http.agent import Python
from optiq.serve.http.app import make_app
from optiq.serve.http.context import Context, Limits, Places, Served
from optiq.serve.http.facts import Choices, read_facts
from optiq.serve.http.guard import Access
from optiq.serve.http.metrics import Measured, Metrics
from optiq.serve.http.runner import bind, make_server, url_of
from optiq.serve.http.shelf import Folder, Shelf
from optiq.serve.supervisor import Patience, Plan, Supervisor
from optiq.serve.switch import Switch, Switched


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
        models: a directory of further models; one is loaded at a time.
        allowed: those of them that may be asked for; empty for all.
        idle_s: the engine is ended after so long without requests; 0 keeps it.
        python: what requests may do with Python; None for nothing.
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
    models: Path | None = None
    allowed: tuple[str, ...] = ()
    idle_s: float = 0.0
    python: Python | None = None


class _Models:
    """The engines of a setup, and the models as routes see them."""

    def __init__(self, setup: Setup, metrics: Metrics) -> None:
        self._setup, self._metrics = setup, metrics
        self.engine = Supervisor(setup.plan, setup.patience)
        several = setup.models is not None or setup.idle_s > 0
        self._switch = Switch(setup.idle_s, setup.plan.most) if several else None

    async def start(self) -> Shelf:
        """Load the default model."""
        await (self.engine.start() if self._switch is None else self._switch.start(self.engine))
        setup = self._setup
        folder = None if setup.models is None else Folder(setup.models, self._other, setup.allowed)
        return Shelf(self._served(setup.name, setup.path, self.engine), setup.aliases, folder)

    async def stop(self) -> None:
        """End whatever runs."""
        await (self.engine if self._switch is None else self._switch).stop()

    def _other(self, name: str, path: Path) -> Served:
        """A further model: as the default one, without what was made for that one alone."""
        plan = self._setup.plan
        context = self._setup.choices.context or context_length(path) or 0
        arguments = {**plan.arguments, "model": str(path.absolute()), "context": context}
        return self._served(name, path, Supervisor(replace(plan, arguments=arguments, adapters={}), self._setup.patience))

    def _served(self, name: str, path: Path, engine: Supervisor) -> Served:
        gateway: Gateway = engine if self._switch is None else Switched(engine, self._switch)
        return read_facts(path, name, Measured(gateway, name, self._metrics), self._setup.choices)


async def serve(setup: Setup, up: Callable[[str, Supervisor], None]) -> int:
    """Serve until a signal.

    Args:
        setup: what and to whom.
        up: called with the URL and the default model's engine once requests are answered.

    Returns:
        0, or the number of the second signal, which did not let requests end.

    Raises:
        OptiqError: the address is taken, or the engine cannot be opened.
    """
    sock = bind(setup.access.host, setup.port)
    metrics = Metrics()
    models = _Models(setup, metrics)
    try:
        context = Context(await models.start(), setup.limits, setup.places, metrics, setup.python)
        server = make_server(make_app(context, setup.access), setup.limits, setup.drain_s)
        server.on_start = lambda: up(url_of(sock), models.engine)
        server.on_late = models.stop
        await server.serve(sockets=[sock])
        return server.heard
    finally:
        sock.close()
        await models.stop()
