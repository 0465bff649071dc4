"""Who guesses the next tokens: the protocol, and the one that uses a model's multi-token-prediction head.

A drafter sees what the model has read, with its hidden states, and guesses what comes. Tokens are drawn by the caller's own
function, so a drafter knows no sampling; guesses are lazy, so that guessing and verifying are launched together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import mlx.core as mx

from optiq.models.caches import cache_arrays, cache_bytes
from optiq.models.mtp_head import Drafting

FEW = 8  # pairs that are read together with the newest: as many as a step leaves
MANY = 128  # tokens that wait for the head at most: what a pause leaves, and a memory bound

Draw = Callable[[mx.array], mx.array]


class Drafter(Protocol):
    """Guesses tokens of one sequence."""

    def seen(self, tokens: mx.array, hidden: mx.array) -> None:
        """The model has read tokens [L] after those before, with hidden states [1, L, E] there."""

    def draft(self, last: mx.array, count: int, draw: Draw) -> mx.array:
        """Guess `count` tokens after `last` [1], which the model has not read yet; lazily, [count].

        Args:
            draw: logits [V] to a token [1]; called once per guess, in order.
        """

    def rewind(self, length: int) -> None:
        """Forget what was seen after the first `length` tokens."""

    @property
    def bytes(self) -> int:
        """What it keeps for the sequence."""


class HeadDrafter:
    """Guesses by a model's head, whose cache follows the sequence.

    A pair is a hidden state and the token after it. Of the newest hidden state that token is known when `draft` or `seen` is
    called next; after a `rewind` it is lost, and the head's cache has one entry less, which costs a guess and no text.

    Args:
        drafting: the head with its model.
    """

    def __init__(self, drafting: Drafting) -> None:
        self._drafting = drafting
        self._begin()

    def _begin(self) -> None:
        self._caches = self._drafting.make_caches()
        self._pairs: list[tuple[mx.array, mx.array]] = []  # hidden states [1, l, E] and tokens [l] that the head has not read
        self._open: mx.array | None = None  # the newest hidden state [1, 1, E], while the token after it is not known
        self._count = 0  # tokens seen, and those that `draft` was told of

    def seen(self, tokens: mx.array, hidden: mx.array) -> None:
        """See `Drafter`."""
        if self._open is not None:
            self._pairs.append((self._open, tokens[:1]))
        if tokens.size > 1:
            self._pairs.append((hidden[:, :-1], tokens[1:]))
        self._open, self._count = hidden[:, -1:], self._count + tokens.size
        if self._waiting > MANY:
            self._read()
            mx.eval(cache_arrays(self._caches))

    def draft(self, last: mx.array, count: int, draw: Draw) -> mx.array:
        """See `Drafter`; `seen` has to come next, with the tokens from `last` on."""
        assert self._open is not None and count > 0
        if self._waiting > FEW:
            self._read()  # of these only the cache is wanted, and only that is computed
        self._pairs.append((self._open, last))
        self._open = None
        hidden, found = self._read(), []
        for place in range(count):
            logits = self._drafting.logits(hidden[:, -1:])[0, -1]
            beyond = self._drafting.width - self._drafting.vocabulary  # tokens that are never guessed
            found.append(draw(mx.pad(logits, (0, beyond), constant_values=-math.inf) if beyond else logits))
            if place + 1 < count:
                hidden = self._drafting(hidden[:, -1:], found[-1][None], self._caches)
        for cache in self._caches:
            cache.trim(count - 1)
        return mx.concatenate(found)

    def rewind(self, length: int) -> None:
        """See `Drafter`."""
        if length == self._count:
            return
        if length == 0:
            self._begin()
            return
        if self._pairs:
            self._read()
        drop = self._count - length  # the pair of the last token that stays has lost its second half
        for cache in self._caches:
            cache.trim(min(cache.offset, drop))
        self._open, self._count = None, length

    @property
    def bytes(self) -> int:
        """See `Drafter`."""
        return cache_bytes(self._caches)

    @property
    def _waiting(self) -> int:
        return sum(tokens.size for _, tokens in self._pairs)

    def _read(self) -> mx.array:
        """Let the head read the pairs that wait; its hidden states [1, l, E]."""
        hidden = mx.concatenate([pair[0] for pair in self._pairs], axis=1)
        tokens = mx.concatenate([pair[1] for pair in self._pairs])
        self._pairs = []
        return self._drafting(hidden, tokens[None], self._caches)
