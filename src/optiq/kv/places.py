"""Where a cache's tokens lie: columns as they are stored against columns in the order of time, and masks between the two.

    stored       packed 0 .. P-1 | full 0 .. F-1, whose first `sinks` are the row's first tokens
    in time      padding | sinks | packed | the rest of full

A row with padding p sees stored packed columns from min(p, P) on and full ones from max(0, p - P) on: rows end together, and a
row has packed tokens only where its full part is whole. Columns are computed on the host: they are few and known there.
"""

from __future__ import annotations

import dataclasses
import functools

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Places:
    """The columns of one cache.

    Args:
        padding: per row; one zero for a cache of one row.
        packed: P.
        full: F.
        sinks: how many of the full columns come first in time, where P > 0.
    """

    padding: tuple[int, ...]
    packed: int
    full: int
    sinks: int

    @property
    def columns(self) -> int:
        """P + F."""
        return self.packed + self.full

    @property
    def even(self) -> bool:
        """Whether all rows are of one length."""
        return not any(self.padding)

    @property
    def timely(self) -> Places:
        """As many columns, in the order of time."""
        return Places(self.padding, 0, self.columns, 0)

    @property
    def starts(self) -> list[int]:
        """Per row, the first packed column that it sees."""
        return [min(p, self.packed) for p in self.padding]

    @property
    def gaps(self) -> list[int]:
        """Per row, how many full columns it does not see."""
        return [max(0, p - self.packed) for p in self.padding]

    def in_time(self) -> Indices:
        """[B, P + F]: the column in time of each stored column, -1 for padding."""
        column = np.arange(self.columns)[None]
        padding = np.array(self.padding)[:, None]
        sinks = self.sinks if self.packed else 0
        later = np.where(column < self.packed, column + sinks, column)
        first = (padding <= self.packed) & (column >= self.packed) & (column < self.packed + sinks)
        found = np.where(first, padding + column - self.packed, later)
        return np.where(column < padding, -1, found)

    def stored(self) -> Indices:
        """[B, P + F]: the stored column of each column in time; padding takes what is left."""
        found = np.empty((len(self.padding), self.columns), np.int64)
        for row, places in enumerate(self.in_time()):
            seen = places >= 0
            found[row, places[seen]] = np.flatnonzero(seen)
            found[row, : self.padding[row]] = np.flatnonzero(~seen)
        return found


@functools.lru_cache(maxsize=2)
def causal(places: Places, length: int, window: int = 0) -> mx.array:
    """[B, 1, L, P + F] boolean in the order of time: who sees whom of the last `length` columns; padding is not seen.

    The layers of a model get one object, by which a cache knows its own mask again.
    """
    column = mx.arange(places.columns)
    query = mx.arange(places.columns - length, places.columns)[:, None]
    seen = column <= query
    if window:
        seen = seen & (column > query - window)
    return seen[None, None] & (column >= mx.array(places.padding)[:, None])[:, None, None]


def to_stored(mask: mx.array, places: Places, newest: int = 0) -> mx.array:
    """A boolean mask whose last axis is in time, for the columns as attention over packed tokens gets them.

    These are the packed columns but for the `newest`, the sinks, the `newest` packed ones, and the rest. A query that sees
    nothing, which stands in padding, sees everything.
    """
    index, seen = _stored_order(places, newest)
    if places.even:
        return mx.take(mask, index[0], axis=-1)
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    mask = mx.broadcast_to(mask, (len(places.padding), *mask.shape[1:]))
    found = mx.take_along_axis(mask, index[:, None, None], axis=-1) & seen[:, None, None]
    return found | ~found.any(-1, keepdims=True)


@functools.lru_cache(maxsize=4)
def _stored_order(places: Places, newest: int) -> tuple[mx.array, mx.array]:
    """Columns in time, and which of them are no padding, [B, P + F] both; the layers of a model ask for the same ones."""
    head = places.packed + places.sinks
    bounds = [(0, places.packed - newest), (places.packed, head), (places.packed - newest, places.packed), (head, places.columns)]
    index = places.in_time()[:, np.concatenate([np.arange(*pair) for pair in bounds])]
    return mx.array(np.maximum(index, 0).astype(np.int32)), mx.array(index >= 0)


def gather(x: mx.array, index: Indices) -> mx.array:
    """Columns of x [B, G, C, ...] per row: index [B, N] to [B, G, N, ...]."""
    lead = mx.array(index).reshape(index.shape[0], 1, index.shape[1], *(1,) * (x.ndim - 3))
    return mx.take_along_axis(x, lead, axis=2)
