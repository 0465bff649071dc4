"""A step that looks ahead: several tokens are read at once, and of each row only the first ones are kept.

    with Verify(caches, L) as step:                 L drafted tokens per row
        hidden = halves.body(tokens, caches)
        if not step.accept(n):                      n tokens stay
            ...                                     the caches stand where they stood; read those n again

Key/value caches are cut. A Gated DeltaNet layer cannot be: while a step is open it leaves its convolution tail and state as they
were and keeps what it got from its projections, from which tail and state after n tokens follow, to the bit what n single steps
leave. They are computed when somebody looks at the cache; the next look-ahead step does it on its way, while it has the state in
registers, so that looking ahead moves no more of the state than a plain step does (a copy per position would move most of a
model's weights' worth). Layers that know nothing of this (stock classes, rotating windows) are put back as they were.

Knows mlx-lm's caches; knows no tokens and no sampling.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import mlx.core as mx

from optiq.models.caches import cache_kind, can_cut
from optiq.models.rows import KeyValueRows

Advance = Callable[[int | mx.array], tuple[mx.array, mx.array]]

_RECORD, _LATE = "_record", "_late"


class Record:
    """What a recurrent layer leaves in its cache instead of moving it on.

    Args:
        base: the cache's arrays before the step.
    """

    def __init__(self, base: list[Any]) -> None:
        self.base = base
        self.advance: Advance | None = None
        self.inputs: list[mx.array] = []

    def fill(self, advance: Advance, inputs: Sequence[mx.array] = ()) -> None:
        """Called by the layer.

        Args:
            advance: tokens that count, of all rows or of each [B], to the tail and the state after them.
            inputs: what a layer that can catch up wants to be given with its next step (`late`).
        """
        self.advance, self.inputs = advance, list(inputs)
        self.base = []  # nobody else may hold an old state, or its memory could not be used again


@dataclass
class Late:
    """A cache whose tail and state are still to be computed.

    Args:
        tail, state: before an earlier step.
        inputs: what that step kept.
        counts: [B] int32, how many of its tokens count.
        advance: gives tail and state after those.
    """

    tail: mx.array
    state: mx.array
    inputs: list[mx.array]
    counts: mx.array
    advance: Callable[[], tuple[mx.array, mx.array]]


def lookahead(caches: Sequence[Any]) -> int:
    """How many tokens of a longer step may stay so that the caches are what single tokens make of them; 0: no such step."""
    return min((getattr(cache, "lookahead", sys.maxsize) for cache in caches), default=sys.maxsize)


def record_of(cache: Any) -> Record | None:
    """The record that a layer has to fill; None where no step is open."""
    return getattr(cache, _RECORD, None)


def take_late(cache: Any) -> Late | None:
    """What there is to catch up with, for a layer that does so and then sets the arrays; None where they are up to date."""
    late: Late | None = cache.__dict__.pop(_LATE, None)
    return late


@functools.cache
def _late_arrays() -> type:
    """mlx-lm's `ArraysCache` with arrays that may be late: whoever looks at them finds them computed."""
    from mlx_lm.models.cache import ArraysCache

    class LateArrays(ArraysCache):
        """See `_late_arrays`."""

        @property
        def cache(self) -> list[Any]:
            late = take_late(self)
            if late is not None:
                self._arrays = list(late.advance())
            return self._arrays

        @cache.setter
        def cache(self, arrays: list[Any]) -> None:
            self.__dict__.pop(_LATE, None)
            self._arrays = arrays

    return LateArrays


class Verify:
    """One look-ahead step over all layers; a context, which closes the step whatever happens in it.

    Args:
        caches: one per layer; the step's tokens are read into them once.
        length: tokens of the step, L >= 1.
    """

    def __init__(self, caches: list[Any], length: int) -> None:
        self._caches, self._length = caches, length
        self._copies: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for place, cache in enumerate(self._caches):
            if cache_kind(cache) == "state":
                _watch(cache)
            elif not _cuttable(cache):
                self._copies[place] = copy.deepcopy(cache)
        return self

    def __exit__(self, *_: object) -> None:
        for cache in self._caches:
            if record_of(cache) is not None:
                delattr(cache, _RECORD)

    def accept(self, counts: int | Sequence[int]) -> bool:
        """Keep the first tokens of the step, of all rows or of each.

        Args:
            counts: from 0 to L; one number, or one per row. Rows that differ ask for caches that can cut them so.

        Returns:
            Whether the caches hold those tokens; False: they hold none of the step, because some layer cannot go half way.
        """
        counts = counts if isinstance(counts, int) or len(set(counts)) > 1 else counts[0]
        if counts == self._length:
            half_way = True  # nothing has to be taken back
        else:
            half_way = not self._copies and all(record.advance is not None for record in self._records())
        kept = counts if half_way else 0
        for place, cache in enumerate(self._caches):
            record = record_of(cache)
            if record is not None:
                _settle(cache, record, kept, whole=kept == self._length)
            elif place in self._copies:
                if not half_way:
                    self._caches[place] = self._copies[place]
            else:
                _cut(cache, self._length, kept)
        return half_way

    def _records(self) -> list[Record]:
        return [record for cache in self._caches if (record := record_of(cache)) is not None]


def _settle(cache: Any, record: Record, kept: int | Sequence[int], whole: bool) -> None:
    """Bring a recurrent cache to where `kept` tokens leave it."""
    if record.advance is None:  # a stock layer: it has moved on by the whole step
        if not whole:
            cache.cache = list(record.base)
        return
    if kept == 0:
        return
    counts = kept if isinstance(kept, int) else mx.array(kept, mx.int32)
    if record.inputs:
        tail, state = cache.cache
        every = mx.full((tail.shape[0],), counts, mx.int32)
        cache.cache = [None, None]
        setattr(cache, _LATE, Late(tail, state, record.inputs, every, partial(record.advance, counts)))
    else:
        cache.cache = list(record.advance(counts))
    record.advance = None


def _cut(cache: Any, length: int, kept: int | Sequence[int]) -> None:
    """Drop what is not kept of the last `length` tokens of a key/value cache."""
    if isinstance(kept, int):
        cache.trim(length - kept)
        return
    if isinstance(cache, KeyValueRows):
        cache.trim_rows([length - count for count in kept])
        return
    most = max(kept)
    cache.trim(length - most)
    shift_rows(cache, [most - count for count in kept])


def shift_rows(cache: Any, shifts: Sequence[int]) -> None:
    """Drop the last tokens of each row of a batch, so many of each; padding before the rows grows by as much.

    Args:
        cache: mlx-lm's `BatchKVCache`, the one kind whose rows can be of different lengths and moved.
        shifts: [B], at least one of them 0.

    Raises:
        TypeError: another kind of cache; a batch of those is kept as one cache per row.
    """
    from mlx_lm.models.cache import BatchKVCache, dynamic_roll

    if not isinstance(cache, BatchKVCache):
        raise TypeError(f"rows of a {type(cache).__name__} cannot be cut by different lengths {list(shifts)}; cut it row by row")
    by = mx.array(shifts, mx.int32)
    cache.keys = dynamic_roll(cache.keys[..., : cache._idx, :], by[:, None], axis=2)
    cache.values = dynamic_roll(cache.values[..., : cache._idx, :], by[:, None], axis=2)
    cache.offset = cache.offset - by
    cache.left_padding = cache.left_padding + by


def _watch(cache: Any) -> None:
    """Open a record."""
    kind = _late_arrays()
    if not isinstance(cache, kind):
        arrays = cache.__dict__.pop("cache")
        cache.__class__ = kind
        cache.cache = arrays
    setattr(cache, _RECORD, Record([] if _LATE in cache.__dict__ else list(cache.cache)))


def _cuttable(cache: Any) -> bool:
    from mlx_lm.models.cache import BatchKVCache

    return can_cut([cache]) or isinstance(cache, BatchKVCache)
