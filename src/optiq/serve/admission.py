"""Who may come in: kinds of caches and what they take, requests that can never run here, room for those that can.

Memory is promised before a request starts. Where it is short, prefixes are evicted first, then prompts are read in smaller
chunks, then the request waits. One that needs more than there is at all is refused when it is submitted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from optiq.kv.options import Maker
from optiq.serve import footprint
from optiq.serve.memory import Budget, Footprint
from optiq.serve.prefix import PrefixCache
from optiq.serve.request import Reason, Refused, Request
from optiq.serve.scheduler import GRID


class Admission:
    """The rules of one engine.

    Args:
        model: as loaded; it runs once, shortly.
        budget: bytes that may be promised.
        prefix: evicted where room is short.
        context: tokens of prompt and reply together; 0 for no limit.
        chunk: tokens of a prompt per forward pass where memory is not short.
        drafter_bytes: what a drafter keeps per token.
    """

    def __init__(
        self, model: Any, budget: Budget, prefix: PrefixCache[Any], context: int, chunk: int, drafter_bytes: float = 0.0
    ) -> None:
        self.budget, self.chunk = budget, chunk
        self._model, self._prefix, self._context, self._longest_chunk = model, prefix, context, chunk
        self._drafter = Footprint(0, drafter_bytes)
        self._shapes = footprint.shapes(model)
        self._kinds: list[tuple[Maker, Footprint]] = []

    def kind(self, maker: Maker) -> int:
        """The number of a kind of caches; equal ones have one number.

        Raises:
            OptiqError: the model cannot have such caches.
        """
        for number, (known, _) in enumerate(self._kinds):
            if known is maker or known == maker:
                return number
        maker.check(self._model)
        self._kinds.append((maker, footprint.measure(maker(self._model), self._shapes)))
        return len(self._kinds) - 1

    def footprint(self, maker: Maker) -> Footprint:
        """What caches of this kind take; measured once. Raises as `kind`."""
        return self._kinds[self.kind(maker)][1]

    def fitted(self, request: Request) -> Request:
        """The request with a reply that fits the context.

        Raises:
            Refused: the prompt alone does not fit, or it needs more memory than there is.
            OptiqError: as `kind`.
        """
        length, context = len(request.prompt), self._context
        if context and length >= context:
            raise Refused(
                Reason.CONTEXT, f"the prompt has {length} tokens, expected fewer than the context of {context}; shorten it"
            )
        if context:
            request = replace(request, max_tokens=min(request.max_tokens, context - length))
        need = self._need(request)
        if not self.budget.possible(need, GRID):
            raise Refused(
                Reason.MEMORY,
                f"the request needs {need / 1e9:.2f} GB of caches for {length} + {request.max_tokens} tokens, expected at most "
                f"{self.budget.limit_bytes / 1e9:.2f} GB; ask for fewer tokens or for caches in fewer bits",
            )
        return request

    def make_room(self, name: str, request: Request) -> bool:
        """Promise memory to a request, and settle the length of chunks; whether it may start."""
        need, self.chunk = self._need(request), self._longest_chunk
        missing = self.budget.missing(need, self._prefix.bytes, self.chunk)
        if missing:
            self._prefix.shrink(missing)
        while (lacking := self.budget.missing(need, self._prefix.bytes, self.chunk)) and self.chunk > GRID:
            self.chunk = max(GRID, self.chunk // 2 // GRID * GRID)
        if lacking and self.budget.promised:
            return False  # alone it starts: it was found possible, and what reading takes is an estimate
        self.budget.promise(name, need)
        return True

    def _need(self, request: Request) -> int:
        tokens = len(request.prompt) + request.max_tokens
        return self.footprint(request.caches).of(tokens) + (self._drafter.of(tokens) if request.draft else 0)
