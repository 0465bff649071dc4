"""OpenAI's API: its routes and its errors.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from optiq.serve.http import chat, completions, models, openai_errors, openapi
from optiq.serve.http.context import Context
from optiq.serve.http.problem import Surface
from optiq.serve.http.responses import Responses

Answering = Callable[[Request], Awaitable[Response]]


def routes(context: Context) -> Sequence[BaseRoute]:
    """All routes of the protocol."""
    kept = Responses(context)
    paths: list[tuple[str, str, Answering]] = [
        ("POST", "/v1/chat/completions", partial(chat.create, context)),
        ("POST", "/v1/completions", partial(completions.create, context)),
        ("GET", "/v1/models", partial(models.listed, context)),
        ("GET", "/v1/models/{model:path}", partial(models.retrieve, context)),
        ("POST", "/v1/responses", kept.create),
        ("POST", "/v1/responses/input_tokens", kept.count),
        ("GET", "/v1/responses/{id}", kept.retrieve),
        ("DELETE", "/v1/responses/{id}", kept.delete),
        ("GET", "/v1/responses/{id}/input_items", kept.input_items),
        ("POST", "/v1/responses/{id}/cancel", kept.cancel),
        ("GET", "/openapi.json", openapi.serve),
    ]
    return [Route(path, answer, methods=[method]) for method, path, answer in paths]


SURFACE = Surface("openai", ("/v1", "/openapi.json"), routes, openai_errors.error)
