"""Routes that mount and unmount adapters while the server runs.

    GET    /v1/adapters           names that are mounted, and names that could be
    POST   /v1/adapters           {"name": …}     mount the adapter of that name
    DELETE /v1/adapters/{name}    forget it, when no request uses it

Clients give names, never paths: a name stands for a directory that the command line gave (`--adapter`), or for a folder of the
one directory of adapters (`--adapter-dir`).
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from optiq.serve.http.body import Body, checked, read
from optiq.serve.http.context import Context, UnknownModel


class Mount(Body):
    """What to mount, on which model."""

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
        asked = checked(Mount, await read(request))
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
