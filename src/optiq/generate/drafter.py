"""Who guesses the next tokens: the protocol, and the one that uses a model's multi-token-prediction head.

A drafter belongs to one sequence. It sees what the model has read, with its hidden states, and guesses what comes, together with
the drafters of other sequences. Tokens are drawn by the caller's own function, so a drafter knows no sampling; guesses are lazy,
so that guessing and verifying are launched together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from optiq.models.caches import Caches, cache_bytes, evaluate
from optiq.models.forward import Halves
from optiq.models.mtp_head import VOCABULARY, Drafting, load_head
from optiq.models.rows import KeyValueRows

FEW = 8  # pairs that are read together with the newest: as many as a step leaves
MANY = 128  # tokens that wait for the head at most: what a pause leaves, and a memory bound

Draw = Callable[[mx.array], mx.array]


class Drafter(Protocol):
    """Guesses tokens of one sequence.

    Attributes:
        vocabulary: only token ids below it are guessed.
        ready: whether it can guess, which it cannot before it has seen anything.
        token_bytes: what it keeps per token that it has seen.
    """

    vocabulary: int
    token_bytes: float

    @property
    def ready(self) -> bool:
        """See above."""

    def seen(self, tokens: mx.array, hidden: mx.array) -> None:
        """The model has read tokens [L] after those before, with hidden states [1, L, E] there."""

    @staticmethod
    def draft(rows: Sequence[Any], last: mx.array, count: int, draw: Draw) -> mx.array:
        """Guess `count` tokens of each sequence after `last` [R], which the model has not read yet; lazily, [R, count].

        Args:
            rows: the sequences' drafters, of this class.
            draw: logits [R, V] to tokens [R]; called once per guess, in order.
        """

    def rewind(self, length: int) -> None:
        """Forget what was seen after the first `length` tokens."""

    def held(self) -> Caches:
        """Caches of what it has seen, for those who keep prefixes; nothing waits to be read."""

    def adopt(self, caches: Caches, length: int) -> None:
        """Begin behind a prefix of so many tokens.

        Args:
            caches: its own from now on, put together from what `held` gave.
        """

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
        self.vocabulary, self.token_bytes = drafting.vocabulary, drafting.token_bytes
        self._begin()

    def _begin(self) -> None:
        self._caches = self._drafting.make_caches()
        self._pairs: list[tuple[mx.array, mx.array]] = []  # hidden states [1, l, E] and tokens [l] that the head has not read
        self._open: mx.array | None = None  # the newest hidden state [1, 1, E], while the token after it is not known
        self._count = 0  # tokens seen, and those that `draft` was told of

    @property
    def ready(self) -> bool:
        """See `Drafter`."""
        return self._open is not None

    def seen(self, tokens: mx.array, hidden: mx.array) -> None:
        """See `Drafter`."""
        if self._open is not None:
            self._pairs.append((self._open, tokens[:1]))
        if tokens.size > 1:
            self._pairs.append((hidden[:, :-1], tokens[1:]))
        self._open, self._count = hidden[:, -1:], self._count + tokens.size
        if self._waiting > MANY:
            self._read()
            evaluate(self._caches)

    @staticmethod
    def draft(rows: Sequence[HeadDrafter], last: mx.array, count: int, draw: Draw) -> mx.array:
        """See `Drafter`; `seen` has to come next, with the tokens from `last` on."""
        assert rows and count > 0
        drafting, found = rows[0]._drafting, []
        pairs = [row._pairs_until(last[place : place + 1]) for place, row in enumerate(rows)]
        caches = [KeyValueRows(layer) for layer in zip(*(row._caches for row in rows), strict=True)]
        hidden = _read_together(drafting, pairs, caches)
        beyond = drafting.width - drafting.vocabulary  # tokens that are never guessed
        for place in range(count):
            logits = drafting.logits(hidden)[:, -1]
            found.append(draw(mx.pad(logits, ((0, 0), (0, beyond)), constant_values=-math.inf) if beyond else logits))
            if place + 1 < count:
                hidden = drafting(hidden, found[-1][:, None], caches)
        for cache in caches:
            cache.trim(count - 1)
        return mx.stack(found, axis=1)

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

    def held(self) -> Caches:
        """See `Drafter`."""
        if self._pairs:
            self._read()
        return self._caches

    def adopt(self, caches: Caches, length: int) -> None:
        """See `Drafter`; as after a `rewind`, one entry is missing."""
        self._caches, self._pairs, self._open, self._count = caches, [], None, length

    @property
    def bytes(self) -> int:
        """See `Drafter`."""
        return cache_bytes(self._caches)

    @property
    def _waiting(self) -> int:
        return sum(tokens.size for _, tokens in self._pairs)

    def _pairs_until(self, last: mx.array) -> tuple[mx.array, mx.array]:
        """The few pairs that wait, the one that `last` [1] completes included; many are read at once, for the cache alone."""
        assert self._open is not None
        if self._waiting > FEW:
            self._read()
        self._pairs.append((self._open, last))
        self._open = None
        return self._take()

    def _read(self) -> None:
        """Let the head read the pairs that wait."""
        hidden, tokens = self._take()
        self._drafting(hidden, tokens[None], self._caches)

    def _take(self) -> tuple[mx.array, mx.array]:
        """The pairs that wait, joined: hidden states [1, l, E] and tokens [l]."""
        hidden = mx.concatenate([pair[0] for pair in self._pairs], axis=1)
        tokens = mx.concatenate([pair[1] for pair in self._pairs])
        self._pairs = []
        return hidden, tokens


def _read_together(drafting: Drafting, pairs: Sequence[tuple[mx.array, mx.array]], caches: Sequence[KeyValueRows]) -> mx.array:
    """Let the head read the pairs of each row in one pass; its hidden states after the last of each, [R, 1, E].

    A row with fewer pairs than another gets padding behind them, which its caches forget.
    """
    counts = [tokens.size for _, tokens in pairs]
    most = max(counts)
    padded = [
        (mx.pad(hidden, ((0, 0), (0, most - count), (0, 0))), mx.pad(tokens, (0, most - count)))
        for (hidden, tokens), count in zip(pairs, counts, strict=True)
    ]
    hidden = drafting(mx.concatenate([pair[0] for pair in padded]), mx.stack([pair[1] for pair in padded]), list(caches))
    for cache in caches:
        cache.trim_rows([most - count for count in counts])
    if min(counts) == most:
        return hidden[:, -1:]
    return mx.take_along_axis(hidden, mx.array(counts)[:, None, None] - 1, axis=1)


def load_drafters(path: Path, model: Any) -> Callable[[], HeadDrafter]:
    """What makes drafters that use the head in a model directory.

    Args:
        path: the directory that `model` was loaded from.
        model: as `optiq.models.load.load` gives it.

    Raises:
        ModelError: there is no head, or one of another kind.
    """
    drafting = Drafting(load_head(path, model), Halves(model), VOCABULARY)
    return lambda: HeadDrafter(drafting)
