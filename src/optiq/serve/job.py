"""One request while it runs: its caches, its prompt's state of reading, its text so far. Owned by the engine's thread."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from optiq.errors import OptiqError
from optiq.generate.depth import Acceptance
from optiq.generate.sampler import Mask, Sampler
from optiq.generate.text import Pieces, StopStrings
from optiq.models.caches import Caches
from optiq.serve.prefix import Checkpoint
from optiq.serve.reading import Chunk
from optiq.serve.request import Finish, Finished, Logprob, Request, Token, Usage

if TYPE_CHECKING:
    from optiq.generate.drafter import Drafter
    from optiq.serve.grammar import State


@dataclass(eq=False)
class Job:
    """A request and everything that is its own.

    Args:
        name: of the request.
        request: what was asked for.
        key: what must be equal for prefixes to be shared.
        submitted: when, in seconds of the engine's clock.
        grammar: which tokens may come next; None for any.
        drafter: guesses its tokens; None where nobody does.
    """

    name: str
    request: Request
    key: Hashable
    submitted: float
    grammar: State | None = None
    drafter: Drafter | None = None
    caches: Caches = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    read: int = 0
    chunk: Chunk | None = None
    before: Checkpoint[Any] | None = None
    since: list[int] = field(default_factory=list)
    since_s: float = 0.0
    ids: list[int] = field(default_factory=list)
    usage: Usage = Usage()
    failure: OptiqError | None = None
    started: float = 0.0
    first: float = 0.0

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.request.sampling, self.request.prompt)
        self.acceptance = Acceptance()
        self.last = self.request.prompt[-1]
        self.usage = replace(self.usage, prompt_tokens=len(self.request.prompt))
        self._stops = StopStrings(self.request.stops)
        self._pieces: Pieces | None = None

    def held(self) -> Caches:
        """The caches that a prefix keeps, the drafter's included."""
        return self.caches if self.drafter is None else [*self.caches, *self.drafter.held()]

    def mask(self) -> Mask | None:
        """What its grammar allows next; None for anything, and where it fails, which `failure` then says."""
        try:
            return None if self.grammar is None else self.grammar.mask()
        except OptiqError as error:
            self.failure = error
            return None

    @property
    def left(self) -> int:
        """How many tokens the reply may still have."""
        return self.request.max_tokens - len(self.ids)

    def looked(self, drafted: int, accepted: int) -> None:
        """A forward pass with so many guesses, of which so many were right."""
        if drafted:
            self.acceptance.add(drafted, accepted)
        counts = self.usage
        self.usage = replace(
            counts, forwards=counts.forwards + 1, drafted=counts.drafted + drafted, accepted=counts.accepted + accepted
        )

    def begin_text(self, tokenizer: Any) -> None:
        """Text is decoded from now on."""
        self._pieces = Pieces(tokenizer)

    def take(
        self, token: int, now: float, logprob: float | None = None, top: tuple[Logprob, ...] = ()
    ) -> tuple[Token | None, Finished | None]:
        """A token was drawn: what to tell of it, and the end of the request if this is it."""
        assert self._pieces is not None
        if not self.ids:
            self.first = now
            self.usage = replace(self.usage, prompt_s=now - self.started)
        self.ids.append(token)
        self.last = token
        self.usage = replace(self.usage, tokens=len(self.ids), decode_s=now - self.first)
        if token in self.request.stop_ids:
            return None, self._end(Finish.STOP, token)
        text = self._stops.pass_on(self._pieces.add(token))
        told = Token(self.name, token, text, logprob, top)
        if self.grammar is not None:
            self.grammar.advance(token)
        if self._stops.found is not None:
            return told, self._finished(Finish.STOP, "", self._stops.found)
        if self.grammar is not None and self.grammar.finished:
            return told, self._end(Finish.STOP)
        if len(self.ids) >= self.request.max_tokens:
            return told, self._end(Finish.LENGTH)
        return told, None

    def end(self, finish: Finish, error: str = "") -> Finished:
        """The request ends from outside; text that was held back is told."""
        if self._pieces is None:
            return self._finished(finish, "", error=error)
        return self._end(finish, error=error)

    def _end(self, finish: Finish, stopped_by: int | str | None = None, error: str = "") -> Finished:
        assert self._pieces is not None
        rest = self._stops.pass_on(self._pieces.finish())
        if self._stops.found is not None:
            return self._finished(Finish.STOP, rest, self._stops.found)
        return self._finished(finish, rest + self._stops.finish(), stopped_by, error)

    def _finished(self, finish: Finish, text: str, stopped_by: int | str | None = None, error: str = "") -> Finished:
        return Finished(self.name, finish, self.usage, text, stopped_by, error)
