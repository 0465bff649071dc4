"""What an engine is asked for and what it tells: frozen dataclasses that cross threads and processes. No MLX.

Request                            one reply to one prompt, with everything that is its own
Progress | Token | Finished        what happens to it, in this order; exactly one `Finished` ends it
Refused                            raised where a request cannot be taken in, with a reason that a client can act on
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from optiq.errors import InputError, OptiqError
from optiq.generate.options import MAX_TOKENS
from optiq.generate.sampling import Sampling
from optiq.kv.options import Maker

if TYPE_CHECKING:
    from optiq.serve.grammar_spec import GrammarSpec

FULL_PRECISION = Maker("")


@dataclass(frozen=True)
class Request:
    """One reply to one prompt.

    Args:
        prompt: token ids, at least one.
        sampling: how its tokens are drawn, seed included; the draw depends on nothing else in the batch.
        max_tokens: at most so many, at least 1.
        stop_ids: token ids that end the reply; not part of the text.
        stops: strings that end it; not part of the text, and no part of one is ever told.
        cuts: lengths of beginnings of the prompt that later prompts will share (end of the system message, of each turn).
        caches: how keys and values are kept; equal ones share prefixes.
        adapter: name of a mounted adapter, or None.
        grammar: what the reply must match, or None.
        after: token ids that end the part of the reply that the grammar leaves free (`</think>`); empty: it binds at once.
        opening: the token that opens such a part, with which the reply may begin or not; None: the prompt has opened it.
        thinking_budget: at most so many tokens come before `after`, which is written then; None for no limit.
        logprobs: tell so many alternatives with each token's log probability; None tells neither.
        prompt_logprobs: tell the log probability of each token of the prompt but the first, with so many alternatives; None tells
            none. Such a prompt is read from its beginning.
        template: hash of the chat template that wrote the prompt; prefixes are shared among equal ones.
        draft: whether speculation may draft tokens for it.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()
    max_tokens: int = MAX_TOKENS
    stop_ids: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    cuts: tuple[int, ...] = ()
    caches: Maker = FULL_PRECISION
    adapter: str | None = None
    grammar: GrammarSpec | None = None
    after: tuple[int, ...] = ()
    opening: int | None = None
    thinking_budget: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    template: str = ""
    draft: bool = True

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InputError("the prompt is empty (0 tokens), expected at least one; give a text")
        if self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens}, expected a whole number of at least 1")
        if "" in self.stops:
            raise InputError("a stop string is empty, expected a text")
        if self.thinking_budget is not None and (self.thinking_budget < 0 or not self.after):
            raise InputError(f"thinking_budget is {self.thinking_budget}, expected at least 0, and tokens that end the reasoning")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"{name} is {value}, expected a whole number of at least 0")


class Reason(enum.StrEnum):
    """Why a request was refused."""

    CONTEXT = "context"  # prompt and reply are longer than the model's context: another request is needed
    MEMORY = "memory"  # it needs more memory than the engine may use at all
    QUEUE = "queue"  # too many are waiting: the same request may be taken in later


class Refused(OptiqError):
    """A request that was not taken in."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Finish(enum.StrEnum):
    """How a reply ended."""

    STOP = "stop"  # a stop token or string, or a grammar that is complete
    LENGTH = "length"  # max_tokens
    CANCELLED = "cancelled"  # somebody asked for it
    REFUSED = "refused"  # it asks for what cannot be, which showed on the way; `Finished.error` says what
    FAILED = "failed"  # a step of it raised; `Finished.error` says what


@dataclass(frozen=True)
class Logprob:
    """A token and the logarithm of its probability, before temperature, filters and penalties."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Usage:
    """What a request took.

    Args:
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them came from the prefix cache.
        tokens: drawn, the one that ended the reply included.
        drafted, accepted: tokens that speculation proposed, and those of them that were right.
        forwards: forward passes of the model in which the reply was a row.
        queue_s: seconds from submission to the first step.
        prompt_s: seconds from the first step to the first token.
        decode_s: seconds from the first token to the last.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    forwards: int = 0
    queue_s: float = 0.0
    prompt_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Scored:
    """A token of the prompt, the log probability that the model gave it, and the likeliest tokens in its place."""

    token: int
    logprob: float
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a prompt has been read; the first one is told when the request starts.

    Args:
        request: whose.
        read: tokens so far.
        total: all of its tokens.
        cached: how many were known from earlier prompts.
        scored: those that follow on the tokens read last, each in its turn; empty where not asked for.
    """

    request: str
    read: int
    total: int
    cached: int = 0
    scored: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class Token:
    """A token was drawn.

    Args:
        request: whose.
        id: the token.
        text: what has become certain of the text with it; often "", sometimes more than its own.
        logprob: of the token; None where not asked for.
        top: the likeliest tokens; empty where not asked for.
    """

    request: str
    id: int
    text: str
    logprob: float | None = None
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of a request, whatever happened.

    Args:
        request: whose.
        finish: how.
        usage: what it took.
        text: the rest of the text.
        stopped_by: the id or string that stopped it, or None.
        error: what failed, in one line; empty otherwise.
    """

    request: str
    finish: Finish
    usage: Usage
    text: str = ""
    stopped_by: int | str | None = None
    error: str = ""


Event = Progress | Token | Finished


@dataclass(frozen=True)
class Load:
    """How busy an engine is.

    Args:
        waiting, reading, decoding: requests in each state.
        cache_bytes: of running requests.
        prefix_bytes: of the prefix cache.
        limit_bytes: what both may take together.
        counters: totals since the start, by name.
    """

    waiting: int
    reading: int
    decoding: int
    cache_bytes: int
    prefix_bytes: int
    limit_bytes: int
    counters: Mapping[str, float] = field(default_factory=dict)


class Serving(Protocol):
    """What an engine is to those who use it; `optiq.serve.engine.Engine` is one."""

    tokenizer: Any

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the mounted adapters."""

    def mount(self, name: str, path: str | os.PathLike[str]) -> None:
        """Make the adapter of a directory usable by requests under a name, or raise `OptiqError`."""

    def unmount(self, name: str) -> None:
        """Forget an adapter that no request uses, or raise `InputError`."""

    def submit(self, request: Request, name: str | None = None) -> str:
        """Take a request in, or raise `Refused`; its name."""

    def cancel(self, name: str) -> None:
        """End a request."""

    def step(self) -> list[Event]:
        """Do the next thing, and tell what happened."""

    def load(self) -> Load:
        """How busy it is."""
