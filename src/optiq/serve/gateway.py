"""What protocols see of an engine: asynchronous, whatever thread or process it lives in. No MLX.

`Gateway` is the interface; `serve.supervisor` keeps an engine in a process of its own behind it. A request is one asynchronous
iterator of its events; closing the iterator cancels the request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from optiq.errors import OptiqError
from optiq.serve.request import Event, Load, Request


class Unavailable(OptiqError):
    """The engine is down or was lost while the request ran; the same request may succeed later.

    Args:
        message: what happened.
        retry_after_s: seconds after which it is worth another try.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Gateway(Protocol):
    """An engine, from an event loop."""

    @property
    def ready(self) -> bool:
        """Whether the engine is up and makes progress."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the mounted adapters."""

    def run(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of one request, `Finished` last; closing it earlier cancels the request.

        Raises:
            Refused, InputError: the engine does not take it in; before the first event.
            Unavailable: the engine is down, or went down while the request ran.
        """

    async def load(self) -> Load:
        """How busy the engine is; raises `Unavailable` where it is down."""

    async def mount(self, name: str, path: str) -> None:
        """Make an adapter usable by requests under a name; raises as `Engine.mount`."""

    async def unmount(self, name: str) -> None:
        """Forget an adapter; raises as `Engine.unmount`."""
