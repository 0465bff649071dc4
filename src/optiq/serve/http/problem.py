"""What goes wrong with a request, in one vocabulary that every protocol puts into its own words.

    Surface    one protocol: the paths that are its, its routes, its shape of an error
    Problem    what happened; `problem_of` makes one of an exception

The application answers what happens outside of routes (no key, too large, no such path, a bug) through the surface whose
path it is. A route raises; it need not catch `OptiqError`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from starlette.responses import Response
from starlette.routing import BaseRoute

from optiq.errors import OptiqError, ResourceError
from optiq.serve.gateway import Unavailable
from optiq.serve.http.context import Context, UnknownModel
from optiq.serve.request import Reason, Refused


class Kind(enum.StrEnum):
    """Of a problem."""

    INVALID = "invalid"  # the request cannot be met as it is
    CONTEXT = "context"  # prompt and reply are longer than the model's context
    MEMORY = "memory"  # it needs more memory than there is at all
    KEY = "key"  # no key, or a wrong one
    FORBIDDEN = "forbidden"  # a Host or an Origin that is not allowed
    UNKNOWN = "unknown"  # no such path, model, adapter or stored reply
    METHOD = "method"  # the path does not have this method
    TIMEOUT = "timeout"  # the client was too slow
    LARGE = "large"  # the body is too large
    MEDIA = "media"  # the body is not JSON
    BUSY = "busy"  # too many are waiting; try again
    DOWN = "down"  # the engine is being restarted; try again
    BUG = "bug"


# As OpenAI's API has them; a protocol with other ones says so itself.
STATUS: dict[Kind, int] = {
    Kind.INVALID: HTTPStatus.BAD_REQUEST,
    Kind.CONTEXT: HTTPStatus.BAD_REQUEST,
    Kind.MEMORY: HTTPStatus.BAD_REQUEST,
    Kind.KEY: HTTPStatus.UNAUTHORIZED,
    Kind.FORBIDDEN: HTTPStatus.FORBIDDEN,
    Kind.UNKNOWN: HTTPStatus.NOT_FOUND,
    Kind.METHOD: HTTPStatus.METHOD_NOT_ALLOWED,
    Kind.TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    Kind.LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Kind.MEDIA: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Kind.BUSY: HTTPStatus.TOO_MANY_REQUESTS,
    Kind.DOWN: HTTPStatus.SERVICE_UNAVAILABLE,
    Kind.BUG: HTTPStatus.INTERNAL_SERVER_ERROR,
}
BUSY_RETRY_S = 1.0
_REASONS = {Reason.CONTEXT: Kind.CONTEXT, Reason.MEMORY: Kind.MEMORY, Reason.QUEUE: Kind.BUSY}


@dataclass(frozen=True)
class Problem:
    """What a client is told.

    Args:
        kind: which sort.
        message: one line.
        field: of the body that is wrong, as a path (`messages.0.content`); "" where it is none.
        retry_after_s: when it is worth another try; None where it is not.
        request_id: of the request, as its reply's headers have it; the application fills it in.
    """

    kind: Kind
    message: str
    field: str = ""
    retry_after_s: float | None = None
    request_id: str = ""

    @property
    def status(self) -> int:
        """The usual HTTP status."""
        return int(STATUS[self.kind])


class Refusal(OptiqError):
    """A problem that a route found."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_of(error: Exception) -> Problem:
    """What to tell of an exception; one that is not ours is a bug, and its text is not told."""
    if isinstance(error, Refusal):
        return error.problem
    if isinstance(error, Refused):
        retry = BUSY_RETRY_S if error.reason is Reason.QUEUE else None
        return Problem(_REASONS[error.reason], str(error), retry_after_s=retry)
    if isinstance(error, Unavailable):
        return Problem(Kind.DOWN, str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, UnknownModel):
        return Problem(Kind.UNKNOWN, str(error), field="model")
    if isinstance(error, ResourceError):
        return Problem(Kind.DOWN, str(error), retry_after_s=BUSY_RETRY_S)
    if isinstance(error, OptiqError):
        return Problem(Kind.INVALID, str(error))
    return Problem(Kind.BUG, "the server failed to answer this request; its log says more")


@dataclass(frozen=True)
class Surface:
    """One protocol as the application sees it.

    Args:
        name: of the protocol.
        prefixes: of the paths whose errors have its shape; the longest that fits wins.
        routes: its routes.
        error: a problem as a response; the application adds `Retry-After` and the request's id.
    """

    name: str
    prefixes: Sequence[str]
    routes: Callable[[Context], Sequence[BaseRoute]]
    error: Callable[[Problem], Response]
