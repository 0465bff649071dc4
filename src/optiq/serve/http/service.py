"""Routes that belong to no protocol: is it alive, is it ready, tokens of a text, the text of tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

import optiq
from optiq.serve.http.context import Context
from optiq.serve.http.problem import Kind, Problem, Refusal, Surface

Body = TypeVar("Body", bound=BaseModel)


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True)
    model: str | None = None


class Tokenize(_Asked):
    """A text; `special` adds the tokens that the model's texts begin with."""

    text: str
    special: bool = False


class Detokenize(_Asked):
    """Token ids."""

    tokens: list[int]


def error(problem: Problem) -> Response:
    """A problem where no protocol has a say."""
    told = {"type": problem.kind, "message": problem.message, "field": problem.field or None, "request_id": problem.request_id}
    return JSONResponse({"error": told}, problem.status)


def read_body(kind: type[Body], data: bytes) -> Body:
    """A body as its model.

    Raises:
        Refusal: not JSON, or of another shape; the problem names the field.
    """
    try:
        return kind.model_validate(json.loads(data))
    except (ValueError, RecursionError) as problem:
        if not isinstance(problem, ValidationError):
            raise Refusal(Problem(Kind.INVALID, "the body is not JSON; send a JSON object")) from None
        first = problem.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise Refusal(Problem(Kind.INVALID, f"{field or 'the body'}: {first['msg']}", field)) from None


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
        asked = read_body(Tokenize, await request.body())
        served = (await context.models.open(asked.model)).served
        tokens = [int(token) for token in served.tokenizer.encode(asked.text, add_special_tokens=asked.special)]
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": served.context or None})

    async def detokenize(request: HttpRequest) -> Response:
        asked = read_body(Detokenize, await request.body())
        served = (await context.models.open(asked.model)).served
        bad = next((token for token in asked.tokens if not 0 <= token < served.vocabulary), None)
        if bad is not None:
            raise Refusal(Problem(Kind.INVALID, f"tokens has {bad}, expected ids from 0 to {served.vocabulary - 1}", "tokens"))
        return JSONResponse({"text": str(served.tokenizer.decode(asked.tokens))})

    table: list[tuple[str, Any, list[str]]] = [
        ("/", about, ["GET"]),
        ("/health", health, ["GET"]),
        ("/ready", ready, ["GET"]),
        ("/tokenize", tokenize, ["POST"]),
        ("/detokenize", detokenize, ["POST"]),
    ]
    return [Route(path, endpoint, methods=methods) for path, endpoint, methods in table]


SURFACE = Surface("optiq", ("",), routes, error)
