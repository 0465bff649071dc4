"""Routes that belong to no protocol: is it alive, is it ready, what it measures, tokens of a text, the text of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

import optiq
from optiq.serve.http import adapters
from optiq.serve.http.body import Body, checked, invalid, read
from optiq.serve.http.context import Context
from optiq.serve.http.problem import Problem, Surface


class Tokenize(Body):
    """A text; `special` adds the tokens that the model's texts begin with."""

    text: str
    special: bool = False
    model: str | None = None


class Detokenize(Body):
    """Token ids."""

    tokens: list[int]
    model: str | None = None


def error(problem: Problem) -> Response:
    """A problem where no protocol has a say."""
    told = {"type": problem.kind, "message": problem.message, "field": problem.field or None, "request_id": problem.request_id}
    return JSONResponse({"error": told}, problem.status)


def routes(context: Context) -> Sequence[BaseRoute]:
    """The routes."""

    async def about(request: HttpRequest) -> Response:
        return JSONResponse({"name": "optiq", "version": optiq.__version__, "models": list(context.models.names)})

    async def health(request: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: HttpRequest) -> Response:
        ready = context.models.ready
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def tokenize(request: HttpRequest) -> Response:
        asked = checked(Tokenize, await read(request))
        served = (await context.models.open(asked.model)).served
        tokens = [int(token) for token in served.tokenizer.encode(asked.text, add_special_tokens=asked.special)]
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": served.context or None})

    async def detokenize(request: HttpRequest) -> Response:
        asked = checked(Detokenize, await read(request))
        served = (await context.models.open(asked.model)).served
        bad = next((token for token in asked.tokens if not 0 <= token < served.vocabulary), None)
        if bad is not None:
            raise invalid("tokens", f"{bad} is not an id of this model, expected 0 to {served.vocabulary - 1}")
        return JSONResponse({"text": str(served.tokenizer.decode(asked.tokens))})

    async def metrics(request: HttpRequest) -> Response:
        text = b"" if context.metrics is None else await context.metrics.text()
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    table: list[tuple[str, Any, list[str]]] = [
        ("/", about, ["GET"]),
        ("/health", health, ["GET"]),
        ("/ready", ready, ["GET"]),
        ("/metrics", metrics, ["GET"]),
        ("/tokenize", tokenize, ["POST"]),
        ("/detokenize", detokenize, ["POST"]),
    ]
    return [*(Route(path, endpoint, methods=methods) for path, endpoint, methods in table), *adapters.routes(context)]


SURFACE = Surface("optiq", ("",), routes, error)
