"""Routes that mount and unmount adapters while the server runs.

    GET    /v1/adapters           names that are mounted, and names that could be
    POST   /v1/adapters           {"name": …}     mount the adapter of that name
    DELETE /v1/adapters/{name}    forget it, when no request uses it

Clients give names, never paths: a name stands for a directory that the command line gave (`--adapter`), or for a folder of the
one directory of adapters (`--adapter-dir`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from optiq.serve.http.body import read_body
from optiq.serve.http.context import Context, UnknownModel

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Places:
    """Where adapters lie that clients may mount.

    Args:
        given: directories by name.
        folder: a directory of adapters; None for none.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def find(self, name: str) -> str:
        """The directory that a name stands for.

        Raises:
            UnknownModel: none.
        """
        if name in self.given:
            return self.given[name]
        if self.folder is not None and NAME.fullmatch(name) and (self.folder / name / CONFIG).is_file():
            return str(self.folder / name)
        raise UnknownModel(f"there is no adapter {name[:100]!r}; known: {', '.join(self.names) or 'none'}")

    @property
    def names(self) -> tuple[str, ...]:
        """All that can be mounted."""
        inside = [] if self.folder is None else self.folder.glob(f"*/{CONFIG}")
        return tuple(sorted({*self.given, *(file.parent.name for file in inside if NAME.fullmatch(file.parent.name))}))


class Mount(BaseModel):
    """What to mount, on which model."""

    model_config = ConfigDict(strict=True)
    name: str
    model: str | None = None


def routes(context: Context) -> Sequence[BaseRoute]:
    """The routes."""

    def listed(mounted: Sequence[str]) -> Response:
        return JSONResponse({"mounted": list(mounted), "available": list(context.places.names)})

    async def show(request: HttpRequest) -> Response:
        gateway = (await context.models.open(request.query_params.get("model"))).served.gateway
        return listed(gateway.adapters)

    async def mount(request: HttpRequest) -> Response:
        asked = read_body(Mount, await request.body())
        gateway = (await context.models.open(asked.model)).served.gateway
        await gateway.mount(asked.name, context.places.find(asked.name))
        return listed(gateway.adapters)

    async def unmount(request: HttpRequest) -> Response:
        name = request.path_params["name"]
        gateway = (await context.models.open(request.query_params.get("model"))).served.gateway
        if name not in gateway.adapters:
            raise UnknownModel(f"no adapter {name[:100]!r} is mounted; mounted: {', '.join(gateway.adapters) or 'none'}")
        await gateway.unmount(name)
        return listed(gateway.adapters)

    return [
        Route("/v1/adapters", show, methods=["GET"]),
        Route("/v1/adapters", mount, methods=["POST"]),
        Route("/v1/adapters/{name}", unmount, methods=["DELETE"]),
    ]
