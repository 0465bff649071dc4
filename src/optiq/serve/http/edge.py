"""The outermost layer: every request has an id and ends in an answer of its protocol's shape. Pure ASGI.

Whatever is raised below becomes a `Problem`. An exception that is not ours is a bug of the server: its traceback goes to the log
with the request's id, and the client hears no more than that. Prompts are never logged: a line has method, path, status, time.
What is asked every second, and answered, is logged for debugging alone: it would bury the rest.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from optiq.serve.http.guard import SHARED
from optiq.serve.http.problem import Kind, Problem, Surface, problem_of

ID = "optiq.request_id"  # where routes find it in the scope
_logger = logging.getLogger("optiq.serve.http")
POLLED = ("/health", "/ready", "/metrics")
_KINDS = {404: Kind.UNKNOWN, 405: Kind.METHOD}


class Edge:
    """Ids, log lines, and answers for what is raised below.

    Args:
        app: what is below.
        surfaces: shapes of errors by path; the one whose prefix is the longest answers.
    """

    def __init__(self, app: ASGIApp, surfaces: Sequence[Surface]) -> None:
        self._app = app
        self._prefixes = sorted(
            ((prefix, surface) for surface in surfaces for prefix in surface.prefixes), key=lambda pair: -len(pair[0])
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        name, start, status = f"req_{secrets.token_hex(12)}", time.perf_counter(), 0
        scope[ID] = name

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                ids = ((b"x-request-id", name.encode()), (b"request-id", name.encode()))
                message["headers"] = [*message["headers"], *ids, *scope.get(SHARED, ())]
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception as error:
            problem, headers = self._problem(error, name)
            if not status:
                await self._answer(problem, headers, scope, receive, named)
        finally:
            seconds = time.perf_counter() - start
            level = logging.DEBUG if status == 200 and scope["path"] in POLLED else logging.INFO
            _logger.log(level, "%s %s %s %d %.3f s", name, scope["method"], _printable(scope["path"]), status, seconds)

    def surface(self, path: str) -> Surface:
        """Whose path it is."""
        return next(surface for prefix, surface in self._prefixes if path.startswith(prefix))

    def _problem(self, error: Exception, name: str) -> tuple[Problem, dict[str, str]]:
        """What to tell of an exception, and the headers that go with it."""
        if isinstance(error, HTTPException):
            kind = _KINDS.get(error.status_code, Kind.INVALID)
            text = {Kind.UNKNOWN: "no such path", Kind.METHOD: "this path does not have this method"}.get(kind, error.detail)
            return Problem(kind, text, request_id=name), dict(error.headers or {})
        problem = replace(problem_of(error), request_id=name)
        if problem.kind is Kind.BUG:
            _logger.error("%s failed", name, exc_info=error)
        retry = problem.retry_after_s
        return problem, {} if retry is None else {"retry-after": str(max(1, math.ceil(retry)))}

    async def _answer(self, problem: Problem, headers: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        response = self.surface(scope["path"]).error(problem)
        for key, value in headers.items():
            response.headers[key] = value
        await response(scope, receive, send)


def _printable(path: str) -> str:
    """A path in one line of a log, whatever a client put there."""
    return path[:200].encode("unicode_escape").decode()
