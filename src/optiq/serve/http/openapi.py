"""The OpenAPI document, made of the models that check requests: for people, for programs, and for tests that try everything.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from optiq.serve.http import anthropic_body, chat_body, completions, models, responses_answer, responses_body
from optiq.serve.http.body import Answer

REFERENCE = "#/components/schemas/{model}"


class OpenAIProblem(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Answer):
    """An error of OpenAI's API."""

    error: OpenAIProblem


class AnthropicProblem(Answer):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(Answer):
    """An error of Anthropic's API."""

    type: str
    error: AnthropicProblem


@dataclass(frozen=True)
class Operation:
    """A method of a path.

    Args:
        method, path: as HTTP has them; the path with its parameters in braces.
        summary: one line.
        body: of the request, or None.
        answer: of a reply that is not a stream.
        error: of a failure.
        streams: the reply may be a stream of events.
    """

    method: str
    path: str
    summary: str
    body: type[BaseModel] | None
    answer: type[BaseModel]
    error: type[BaseModel] = OpenAIError
    streams: bool = False


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST", "/v1/chat/completions", "Reply to a conversation", chat_body.ChatBody, chat_body.ChatCompletion, streams=True
    ),
    Operation("POST", "/v1/completions", "Continue texts", completions.CompletionBody, completions.Completion, streams=True),
    Operation(
        "POST", "/v1/responses", "Reply with items", responses_body.ResponseBody, responses_answer.ResponseObject, streams=True
    ),
    Operation(
        "POST", "/v1/responses/input_tokens", "Count a prompt's tokens", responses_body.ResponseBody, responses_answer.InputTokens
    ),
    Operation("GET", "/v1/responses/{id}", "A response that was kept", None, responses_answer.ResponseObject),
    Operation("DELETE", "/v1/responses/{id}", "Forget a response", None, responses_answer.Deleted),
    Operation("GET", "/v1/responses/{id}/input_items", "The input of a response", None, responses_answer.InputItems),
    Operation("POST", "/v1/responses/{id}/cancel", "Refused: no response is made in the background", None, OpenAIError),
    Operation("GET", "/v1/models", "All models", None, models.ModelList),
    Operation("GET", "/v1/models/{model}", "One model", None, models.Model),
    Operation(
        "POST",
        "/v1/messages",
        "Reply to a conversation",
        anthropic_body.MessagesBody,
        anthropic_body.Message,
        AnthropicError,
        True,
    ),
    Operation(
        "POST",
        "/v1/messages/count_tokens",
        "Count a prompt's tokens",
        anthropic_body.PromptBody,
        anthropic_body.TokenCount,
        AnthropicError,
    ),
)


def document(operations: Sequence[Operation] = OPERATIONS) -> dict[str, Any]:
    """The document of some operations."""
    bodies = {operation.body for operation in operations if operation.body is not None}
    answers = {model for operation in operations for model in (operation.answer, operation.error)}
    wanted: list[Any] = [(model, "validation") for model in bodies | answers]
    names, schemas = models_json_schema(sorted(wanted, key=repr), ref_template=REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        told: dict[str, Any] = {"summary": one.summary, "parameters": _parameters(one.path), "responses": {}}
        if one.body is not None:
            told["requestBody"] = {"required": True, "content": _json(names[one.body, "validation"])}
        content = _json(names[one.answer, "validation"])
        if one.streams:
            content["text/event-stream"] = {"schema": {"description": "Server-sent events, as the API has them"}}
        failure = {"description": "Not met", "content": _json(names[one.error, "validation"])}
        told["responses"] = {"200": {"description": "Done", "content": content}, "4XX": failure, "5XX": failure}
        paths.setdefault(one.path, {})[one.method.lower()] = told
    info = {"title": "optiq", "version": "1", "description": "Language models for clients of OpenAI and Anthropic"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas["$defs"]}}


async def serve(request: Request) -> Response:
    """The document of all operations."""
    return JSONResponse(document())


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]
