"""OpenAI's API: its routes and its errors.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from optiq.serve.http import chat, openai_errors
from optiq.serve.http.context import Context
from optiq.serve.http.problem import Surface

Answering = Callable[[Context, Request], Awaitable[Response]]
CLIENT_LEFT = 499  # nobody reads it; it stands in logs

POSTS: dict[str, Answering] = {"/v1/chat/completions": chat.create}


def routes(context: Context) -> Sequence[BaseRoute]:
    """All routes of the protocol."""
    return [Route(path, partial(_answered, answer, context), methods=["POST"]) for path, answer in POSTS.items()]


async def _answered(answer: Answering, context: Context, request: Request) -> Response:
    try:
        return await answer(context, request)
    except ClientDisconnect:
        return Response(status_code=CLIENT_LEFT)


SURFACE = Surface("openai", ("/v1",), routes, openai_errors.error)
