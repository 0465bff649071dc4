"""A cache as what it keeps per token and the rest, so that prefixes of a prompt can be kept once and put together again.

    columns(cache)             how many there are
    take(cache, start, stop)   their arrays, copied, so that nothing larger is held
    rest(cache)                all else, frozen
    build(columns, rest)       a new cache that may grow without touching what it was built from

One class per kind, one table; a kind that is not in it is kept whole. Columns [0, n) of a cache never change while it grows:
packed ones are final, and plain keys and values are. Data in and out: caches of one sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

from optiq.kv.cache import PackedCache
from optiq.models.caches import Caches, cache_kind, growing_cache

Arrays = list[mx.array]


class Kind(Protocol):
    """How one kind of cache comes apart."""

    def columns(self, cache: Any) -> int:
        """How many columns it has."""

    def take(self, cache: Any, start: int, stop: int) -> Arrays:
        """Their arrays, tokens along axis 2."""

    def rest(self, cache: Any) -> Any:
        """All else."""

    def build(self, columns: Arrays, rest: Any) -> Any:
        """A cache of both; `columns` is empty where there are none."""


class Plain:
    """Keys and values as the model computes them."""

    def columns(self, cache: Any) -> int:
        return int(cache.offset)

    def take(self, cache: Any, start: int, stop: int) -> Arrays:
        return [mx.contiguous(side[:, :, start:stop]) for side in (cache.keys, cache.values)]

    def rest(self, cache: Any) -> Any:
        return None

    def build(self, columns: Arrays, rest: Any) -> Any:
        cache = growing_cache()
        if columns:
            cache.state = (*columns, columns[0].shape[2])
        return cache


class Packed:
    """Packed columns; sinks, tail, mean and counts are the rest. A window forgets columns and is kept whole."""

    def columns(self, cache: PackedCache) -> int:
        return cache.columns

    def take(self, cache: PackedCache, start: int, stop: int) -> Arrays:
        return cache.take(start, stop)

    def rest(self, cache: PackedCache) -> Any:
        return cache.without_columns()

    def build(self, columns: Arrays, rest: PackedCache) -> Any:
        return rest.with_columns(columns)


class Whole:
    """Nothing per token: states of recurrent layers, windows."""

    def columns(self, cache: Any) -> int:
        return 0

    def take(self, cache: Any, start: int, stop: int) -> Arrays:
        return []

    def rest(self, cache: Any) -> Any:
        return copy.deepcopy(cache)  # later steps of the original cannot change it

    def build(self, columns: Arrays, rest: Any) -> Any:
        return copy.deepcopy(rest)


KINDS: dict[str, Kind] = {"plain": Plain(), "packed": Packed()}
_WHOLE = Whole()


def kind_of(cache: Any) -> Kind:
    """The entry of the table that knows this cache."""
    if isinstance(cache, PackedCache):
        return _WHOLE if cache.window else KINDS["packed"]
    return KINDS.get(cache_kind(cache), _WHOLE)


def counts(caches: Caches) -> list[int]:
    """Columns of each layer."""
    return [kind_of(cache).columns(cache) for cache in caches]


def take(caches: Caches, since: Sequence[int]) -> list[Arrays]:
    """Copies of the columns of each layer from `since` on."""
    found = []
    for cache, start in zip(caches, since, strict=True):
        kind = kind_of(cache)
        stop = kind.columns(cache)
        found.append(kind.take(cache, start, stop) if stop > start else [])
    return found


def rests(caches: Caches) -> list[Any]:
    """The rest of each layer."""
    return [kind_of(cache).rest(cache) for cache in caches]


def build(like: Caches, segments: Sequence[Sequence[Arrays]], rest: Sequence[Any]) -> Caches:
    """Caches of the kinds of `like` from columns in order and the rest.

    Args:
        like: fresh caches, for their kinds.
        segments: what `take` gave, first tokens first.
        rest: what `rests` gave at the end of the last segment.
    """
    found = []
    for layer, (fresh, own) in enumerate(zip(like, rest, strict=True)):
        parts = [segment[layer] for segment in segments if segment[layer]]
        joined = [mx.concatenate(list(sides), axis=2) if len(sides) > 1 else sides[0] for sides in zip(*parts, strict=True)]
        found.append(kind_of(fresh).build(joined, own))
    return found


def arrays(value: Any) -> Arrays:
    """Every array in columns or rests."""
    found: Arrays = []
    leaves: Any = tree_flatten(value, is_leaf=lambda x: not isinstance(x, (list, tuple, dict)))
    for _, leaf in leaves:
        if isinstance(leaf, mx.array):
            found.append(leaf)
        elif hasattr(leaf, "state") and not (hasattr(leaf, "empty") and leaf.empty()):
            found += arrays(list(leaf.state) if isinstance(leaf.state, (list, tuple)) else leaf.state)
    return found


def bytes_of(value: Any) -> int:
    """What the arrays in columns or rests take."""
    return sum(int(array.nbytes) for array in arrays(value))
