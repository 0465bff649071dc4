"""The application: the routes of every protocol inside of what all requests pass. ASGI.

Edge (ids, errors, log) > Guard (host, origin, key) > Intake (body, times, disconnects) > routes
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from optiq.serve.http import anthropic, openai, service
from optiq.serve.http.context import Context
from optiq.serve.http.edge import Edge
from optiq.serve.http.guard import Access, Guard
from optiq.serve.http.intake import Intake
from optiq.serve.http.problem import Surface

SURFACES: Sequence[Surface] = (service.SURFACE, openai.SURFACE, anthropic.SURFACE)


def make_app(context: Context, access: Access, surfaces: Sequence[Surface] = ()) -> ASGIApp:
    """The whole application.

    Args:
        context: what routes are given.
        access: who may ask.
        surfaces: protocols; without any, all that there are.
    """
    chosen = surfaces or SURFACES
    router = Router([route for surface in chosen for route in surface.routes(context)], redirect_slashes=False)

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = routed  # so that an unknown path and a wrong method are raised, not answered
        await router(scope, receive, send)

    return Edge(Guard(Intake(routed, context.limits), access), chosen)
