"""Several sequences in one cache, as mlx-lm's batch caches have them: rows of different lengths end together.

A shorter row has padding at its beginning. Where a row has packed tokens its full part is whole, so that the padding is in its
packed columns; a row too short for that has none packed and its padding reaches into the full part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx
import numpy as np

from optiq.kv.columns import Columns
from optiq.kv.places import gather
from optiq.kv.rows import Buffers


class Batched(Columns):
    """`Columns` of one sequence or of a batch."""

    @classmethod
    def merge(cls, caches: Sequence[Self]) -> Self:
        """One batch of several sequences' caches.

        Raises:
            ValueError: they are kept in different ways.
        """
        rows = [cache._ready() for cache in caches]
        found = rows[0]
        for row in rows[1:]:
            found._append_rows(row)
        return found

    def extend(self, other: Self) -> None:
        """Take in the rows of another batch."""
        other = other.copy()
        for cache in (self, other):
            cache._padding = cache._padding or [0] * len(cache._seen)
        self._append_rows(other)

    def filter(self, batch_indices: Sequence[int] | mx.array) -> None:
        """Keep these rows, in this order."""
        chosen: list[int] = np.array(batch_indices).tolist()
        rows, padding = mx.array(chosen, mx.int32), self._padding or [0] * len(self._seen)
        self._seen, self._centred = [self._seen[i] for i in chosen], [self._centred[i] for i in chosen]
        self._padding = [padding[i] for i in chosen]
        self._late = None if self._late is None else [self._late[i] for i in chosen]
        self._mean = None if self._mean is None else self._mean[rows]
        if self._full is not None:
            self._full = (self._full[0][rows], self._full[1][rows])
            keys, values = ([buffer[rows] for buffer in side] for side in self._buffers)
            self._buffers, self._owned = (keys, values), False
            self._drop(min(self._padding))
            self._compact()

    def extract(self, idx: int) -> Self:
        """One row as a cache of its own."""
        found = self._alike()
        found._seen, found._centred = [self._seen[idx]], [self._centred[idx]]
        found._mean = None if self._mean is None else mx.contiguous(self._mean[idx : idx + 1])
        if self._full is None:
            return found
        places, row = self._places(), slice(idx, idx + 1)
        start, gap = places.starts[idx], places.gaps[idx]
        found._packed = places.packed - start
        found._full = (mx.contiguous(self._full[0][row, :, gap:]), mx.contiguous(self._full[1][row, :, gap:]))
        if found._packed:
            part = slice(self._dropped + start, self._packed)
            keys, values = ([mx.contiguous(buffer[row, :, part]) for buffer in side] for side in self._buffers)
            found._buffers = (keys, values)
        return found

    def prepare(
        self,
        *,
        left_padding: Sequence[int] | None = None,
        lengths: Any = None,
        right_padding: Sequence[int] | None = None,
    ) -> None:
        """Say that the next tokens are padded: before the rows for good, or after them until `finalize`.

        Until then nothing is packed, so that what stands behind a row's end leaves no trace.
        """
        if left_padding is not None:
            if self._full is not None:
                raise ValueError("left padding can only be added to an empty cache")
            rows = self._padding or [0] * len(left_padding)
            self._padding = [a + b for a, b in zip(rows, left_padding, strict=True)]
            seen = self._seen if len(self._seen) == len(rows) else [0] * len(rows)
            self._seen = [n - b for n, b in zip(seen, left_padding, strict=True)]
            self._centred = [self._decided] * len(rows)
        if right_padding is not None and max(right_padding) > 0:
            self._late = [int(n) for n in right_padding]

    def finalize(self) -> None:
        """Drop the padding behind the rows."""
        if self._late is None:
            return
        late, self._late = self._late, None
        rows = [self.extract(index) for index in range(len(late))]
        for row, count in zip(rows, late, strict=True):
            row.trim(count)
        self.__dict__.update(self.merge(rows).__dict__)

    def is_trimmable(self) -> bool:
        """Whether the newest tokens can be dropped: not once a window has lost older ones."""
        padding = self._padding or [0]
        return not self.window or all(n + p <= self.size() for n, p in zip(self._seen, padding, strict=True))

    def trim(self, n: int) -> int:
        """Drop the newest n tokens of every row, packed ones too; how many there were to drop."""
        if self._full is None:
            return 0
        places, (k, v) = self._places(), self._full
        n = min(n, places.columns)
        from_full = min(n, places.full - places.sinks)
        from_packed = min(n - from_full, places.packed)
        left = places.full - from_full
        after = places.packed - from_packed
        shift = np.array([max(0, p - after) for p in places.padding]) - np.array(places.gaps)
        if shift.any():  # rows that have lost all their packed tokens: the newest of their sinks go
            index = np.maximum(np.arange(left)[None] - shift[:, None], 0)
            k, v = gather(k, index), gather(v, index)
        left -= n - from_full - from_packed
        self._full = (mx.contiguous(k[:, :, :left]), mx.contiguous(v[:, :, :left]))
        self._packed -= from_packed
        self._seen = [seen - n for seen in self._seen]
        if not after:
            self._buffers, self._packed, self._dropped, self._owned = ([], []), 0, 0, False
        return n

    def _ready(self) -> Self:
        """A copy as a batch of one whose full part is as long as usual: packed, or unpacked again after a trim."""
        found = self.copy()
        found._compact()
        if found._full is not None:
            usual, length = found._sinks + found.recipe.tail, found._full[0].shape[2]
            if length > usual:
                found._pack(length - usual)
            elif found._packed and length < usual:
                found._unpack(min(usual - length, found._packed))
        found._padding = found._padding or [0]
        return found

    def _append_rows(self, other: Self) -> None:
        """The rows of another batch behind our own."""
        if (self.recipe, self.window) != (other.recipe, other.window):
            raise ValueError(f"caches of different kinds cannot be one batch: {self.recipe} and {other.recipe}")
        both = (self, other)
        for cache in both:
            cache._compact()
        lengths = [cache._places().full for cache in both if cache._packed]
        for cache in both:  # rows with packed tokens have full parts of one length
            if lengths and (over := cache._places().full - min(lengths)) > 0:
                cache._pack(over)
        places = [cache._places() for cache in both]
        rows = (len(self._seen), len(other._seen))
        packed, full = max(p.packed for p in places), max(p.full for p in places)
        self._rows = self._rows or other._rows
        keys, values = (
            [_stacked(pair, rows, packed) for pair in _pairs(*(cache._used(side) for cache in both))] for side in (0, 1)
        )
        self._buffers, self._owned = (keys, values), False
        if self._full is not None or other._full is not None:
            ends = [cache._full or (None, None) for cache in both]
            self._full = (_stacked((ends[0][0], ends[1][0]), rows, full), _stacked((ends[0][1], ends[1][1]), rows, full))
        if self._mean is not None or other._mean is not None:
            self._mean = _stacked((self._mean, other._mean), rows, 1)
        self._padding = [p + packed + full - each.columns for each in places for p in each.padding]
        self._seen, self._centred = self._seen + other._seen, self._centred + other._centred
        self._packed = packed

    def _used(self, side: int) -> Buffers:
        return [buffer[:, :, : self._packed] for buffer in self._buffers[side]] if self._packed else []


def _pairs(a: Buffers, b: Buffers) -> list[tuple[mx.array | None, mx.array | None]]:
    """Buffers of two caches side by side; one may have none."""
    return [(a[i] if a else None, b[i] if b else None) for i in range(max(len(a), len(b)))]


def _stacked(pair: tuple[mx.array | None, mx.array | None], rows: tuple[int, int], columns: int) -> mx.array:
    """Rows of the first, then of the second, filled up with zeros on the left to so many columns."""
    like = pair[0] if pair[0] is not None else pair[1]
    assert like is not None
    parts = []
    for array, count in zip(pair, rows, strict=True):
        if array is None:
            parts.append(mx.zeros((count, like.shape[1], columns, *like.shape[3:]), like.dtype))
        else:
            missing = columns - array.shape[2]
            parts.append(mx.pad(array, [(0, 0), (0, 0), (missing, 0)] + [(0, 0)] * (array.ndim - 3)) if missing else array)
    return mx.concatenate(parts)
