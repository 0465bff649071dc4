"""Problems as OpenAI's API tells them.

Source: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from optiq.serve.http.problem import Kind, Problem, problem_of
from optiq.serve.http.stream import frame

# Kind -> type and code.
_TYPES: dict[Kind, tuple[str, str | None]] = {
    Kind.INVALID: ("invalid_request_error", None),
    Kind.CONTEXT: ("invalid_request_error", "context_length_exceeded"),
    Kind.MEMORY: ("invalid_request_error", "memory_exceeded"),
    Kind.KEY: ("invalid_request_error", "invalid_api_key"),
    Kind.FORBIDDEN: ("invalid_request_error", "forbidden"),
    Kind.UNKNOWN: ("invalid_request_error", "not_found"),
    Kind.METHOD: ("invalid_request_error", "method_not_supported"),
    Kind.TIMEOUT: ("timeout", "request_timeout"),
    Kind.LARGE: ("invalid_request_error", "request_too_large"),
    Kind.MEDIA: ("invalid_request_error", "unsupported_media_type"),
    Kind.BUSY: ("rate_limit_error", "queue_full"),
    Kind.DOWN: ("server_error", "engine_unavailable"),
    Kind.BUG: ("server_error", None),
}


def content(problem: Problem) -> dict[str, Any]:
    """The body of an error."""
    kind, code = _TYPES[problem.kind]
    if problem.kind is Kind.UNKNOWN and problem.field == "model":
        code = "model_not_found"
    return {"error": {"message": problem.message, "type": kind, "param": problem.field or None, "code": code}}


def error(problem: Problem) -> Response:
    """A problem as a response."""
    return JSONResponse(content(problem), problem.status)


def broken(error: Exception) -> bytes:
    """The last event of a stream that an exception ends."""
    return frame(content(problem_of(error)))
