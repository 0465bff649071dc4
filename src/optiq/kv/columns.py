"""The tokens of one attention layer in fewer bits: packed columns with full-precision sinks and tail around them.

    in time      padding | sinks | packed | tail and newest
    stored       packed columns in growing buffers; one full-precision array [sinks | tail and newest]

New tokens enter the full-precision part. What is older than `tail` is packed at the next update, in steps of `pack_step`; with
tail 0 a token is packed at once. Keys have their mean taken away as they come in. What attends, what a batch is and what a
file looks like are not known here: `optiq.kv.{batch,cache,saving}`.
"""

from __future__ import annotations

import copy
import sys
from typing import Any, Self

import mlx.core as mx
import numpy as np

from optiq.kv.places import Places, gather
from optiq.kv.recipe import Recipe
from optiq.kv.rows import NONE, Buffers, Rows, Statistics, key_rows, value_rows

GROW_STEP = 256  # tokens, as stock caches grow
PACK_STEP = 32  # tokens packed at a time where there is a tail, half of it at most: a decoding step packs once in so many
LEAST_FOR_MEAN = 16  # tokens; a mean over fewer is noise

Pair = tuple[mx.array, mx.array]


def pack_step(recipe: Recipe) -> int:
    """How many tokens are packed at a time."""
    return max(1, min(PACK_STEP, recipe.tail // 2))


class Columns:
    """Keys and values of one layer, by column.

    Args:
        recipe: how they are kept.
        known: statistics of the layer's vectors.
        still: the first of the key channels that do not turn with the position; None for none. From there on the mean of the
            first keys is taken away where `recipe` centres and `known` has none.
        window: how many tokens a query sees, itself included; 0 for all. Older ones are dropped, sinks are not kept.
    """

    def __init__(self, recipe: Recipe, known: Statistics = NONE, still: int | None = None, window: int = 0) -> None:
        self.recipe, self.known, self.still, self.window = recipe, known, still, window
        self._rows: tuple[Rows, Rows] | None = None
        self._buffers: tuple[Buffers, Buffers] = ([], [])
        self._full: Pair | None = None
        self._packed = 0  # columns in use
        self._dropped = 0  # of them, those that have left the window
        self._padding: list[int] | None = None  # per row of a batch; None: one sequence, whose offset is a plain number
        self._seen = [0]  # tokens, per row
        self._mean: mx.array | None = None  # [B, G, 1, D], taken from the keys of each row
        self._centred = [self._decided]  # per row, whether its mean is what it will be
        self._late: list[int] | None = None  # columns at the end that are padding until `finalize`
        self._owned = False  # nobody else holds the buffers

    @property
    def cuttable(self) -> bool:
        """Whether the newest tokens can be dropped at any time."""
        return not self.window

    @property
    def lookahead(self) -> int:
        """How many tokens can come in one step, the last of them be dropped, and what stays be what single tokens leave.

        Packing at another time would pack other tokens together, so what stays of a step ends before the next packing is due.
        0: not even what is dropped may come, for the mean of the keys would be taken from it too.
        """
        if not self.recipe.tail:
            return sys.maxsize if all(self._centred) else 0
        step = pack_step(self.recipe)
        due = 0 if self._full is None else int(self._full[0].shape[2]) - self._sinks - self.recipe.tail
        return step - due if due < step else step

    @property
    def offset(self) -> Any:
        """Tokens seen: a number, or int32 [B] for a batch."""
        return self._seen[0] if self._padding is None else mx.array(self._seen, mx.int32)

    def size(self) -> int:
        """Columns that are held and not out of the window, padding included."""
        return self._places().columns

    def empty(self) -> bool:
        """Whether it has never had a token."""
        return self._full is None

    @property
    def arrays(self) -> list[mx.array]:
        """Every array that it holds, for those who compute them and let them go."""
        own = [*self._buffers[0], *self._buffers[1], *(self._full or ())]
        return own if self._mean is None else [*own, self._mean]

    @property
    def nbytes(self) -> int:
        """Bytes of every array that it holds, room for later tokens included; not of constants that caches share."""
        return sum(int(array.nbytes) for array in self.arrays)

    def copy(self) -> Self:
        """Another cache with the same content."""
        other = type(self).__new__(type(self))
        self._owned = False
        other.__dict__.update(self.__dict__)
        # Item assignment changes an array object itself, so each cache has its own.
        other._buffers = ([copy.copy(b) for b in self._buffers[0]], [copy.copy(b) for b in self._buffers[1]])
        other._seen, other._centred = list(self._seen), list(self._centred)
        other._padding = None if self._padding is None else list(self._padding)
        return other

    def __deepcopy__(self, memo: Any) -> Self:
        return self.copy()

    @property
    def columns(self) -> int:
        """Packed columns that will not change any more; of one sequence without a window."""
        return self._packed

    def take(self, start: int, stop: int) -> Buffers:
        """Copies of packed columns [start, stop): arrays of keys, then of values."""
        return [mx.contiguous(buffer[:, :, start:stop]) for side in self._buffers for buffer in side]

    def without_columns(self) -> Self:
        """Another cache with all but the packed columns; only `with_columns` makes it whole."""
        other = self.copy()
        other._buffers = ([], [])
        return other

    def with_columns(self, columns: Buffers) -> Self:
        """A cache with the content of `without_columns` and these columns; both stay as they are."""
        other = self.copy()
        if not columns:
            return other
        assert self._rows is not None
        keys = len(self._rows[0].buffers(1, 1, 1))
        other._buffers = ([copy.copy(b) for b in columns[:keys]], [copy.copy(b) for b in columns[keys:]])
        return other

    @property
    def _decided(self) -> bool:
        """Whether there is no mean to be found: none wanted, one known, or no channel that could have one."""
        return not self.recipe.centred or self.known.key_mean is not None or self.still is None

    @property
    def _sinks(self) -> int:
        return 0 if self.window else self.recipe.sinks

    def _alike(self) -> Self:
        """An empty cache of the same kind."""
        other = type(self).__new__(type(self))
        Columns.__init__(other, self.recipe, self.known, self.still, self.window)
        other._rows = self._rows
        return other

    def _places(self) -> Places:
        full = 0 if self._full is None else int(self._full[0].shape[2])
        used = self._packed - self._dropped
        padding = [0] if self._padding is None else self._padding
        return Places(tuple(padding), used, full, self._sinks if used else 0)

    def _begin(self, keys: mx.array, values: mx.array) -> None:
        """The shapes become known."""
        batch, groups, _, width = keys.shape
        self.known.check(groups, width, values.shape[3])
        self._full = (_none(keys), _none(values))
        self._make_rows(groups, width, values.shape[3], keys.dtype, values.dtype)
        if self.recipe.centred and self.known.key_mean is not None:
            mean = self.known.key_mean[:, None].astype(mx.float32)
            self._mean = mx.contiguous(mx.broadcast_to(mean, (batch, groups, 1, width)))

    def _make_rows(self, groups: int, k_width: int, v_width: int, k_dtype: mx.Dtype, v_dtype: mx.Dtype) -> None:
        keys = key_rows(self.recipe, groups, k_width, k_dtype, self.known)
        self._rows = (keys, value_rows(self.recipe, groups, v_width, v_dtype, self.known))

    def _append(self, keys: mx.array, values: mx.array) -> None:
        """New columns at the end."""
        if self._full is None:
            self._begin(keys, values)
        assert self._full is not None
        if self._late is None:
            self._drop(self._places().columns - (self.window - 1) if self.window else 0)
            if self.recipe.tail:
                self._settle(pack_step(self.recipe))
        if self._mean is not None:
            keys = (keys.astype(mx.float32) - self._mean).astype(keys.dtype)
        self._full = (_joined(self._full[0], keys), _joined(self._full[1], values))
        self._seen = [n + keys.shape[2] for n in self._seen]
        if self._late is None and not self.recipe.tail:
            self._settle(1)

    def _settle(self, step: int) -> None:
        """Pack what is older than the tail, once there are `step` of them."""
        assert self._full is not None
        due = self._full[0].shape[2] - self._sinks - self.recipe.tail
        if due >= step:
            self._pack(due)

    def _pack(self, count: int) -> None:
        """Move `count` columns of the full part, the oldest behind its sinks, to the packed ones.

        A row with a gap g before its tokens gives up the gap first: where g >= count nothing of it is packed.
        """
        assert self._full is not None and self._rows is not None
        if not all(self._centred):
            self._centre(count)
        self._make_room(count)
        start, sinks = self._packed, self._sinks
        (k_rows, v_rows), (k_buffers, v_buffers), (k, v) = self._rows, self._buffers, self._full
        part = slice(sinks, sinks + count)
        self._buffers = (
            k_rows.store(k_buffers, start, k[:, :, part]),
            v_rows.store(v_buffers, start, v[:, :, part]),
        )
        gaps = np.array(self._places().gaps)
        head = np.arange(sinks)[None] + np.minimum(gaps, count)[:, None]
        self._full = (_without(k, head, sinks + count), _without(v, head, sinks + count))
        self._packed += count

    def _unpack(self, count: int) -> None:
        """Move the newest `count` packed columns of one sequence back to the full part, as they were packed."""
        assert self._full is not None and self._rows is not None and self._padding is None
        end, sinks, found = self._packed - count, self._sinks, []
        for rows, buffers, full in zip(self._rows, self._buffers, self._full, strict=True):
            old = rows.unpack([buffer[:, :, end : self._packed] for buffer in buffers], full.dtype)
            found.append(mx.concatenate([full[:, :, :sinks], old, full[:, :, sinks:]], 2))
        self._full, self._packed = (found[0], found[1]), end

    def _centre(self, count: int) -> None:
        """Decide the means of the rows that have none yet, from what they hold, before `count` columns are packed."""
        assert self._full is not None and self.still is not None
        keys, gaps = self._full[0], self._places().gaps
        length, sinks = keys.shape[2], self._sinks
        enough = [length - gap - sinks >= LEAST_FOR_MEAN for gap in gaps]
        now = [not done and many for done, many in zip(self._centred, enough, strict=True)]
        self._centred = [d or n or gap < count for d, n, gap in zip(self._centred, now, gaps, strict=True)]
        if not any(now):
            return
        first = np.array([gap + sinks if n else length for gap, n in zip(gaps, now, strict=True)])[:, None]
        weight = np.arange(length)[None] >= first
        weight = weight / np.maximum(weight.sum(1, keepdims=True), 1)
        mean = (keys.astype(mx.float32) * mx.array(weight, mx.float32)[:, None, :, None]).sum(2, keepdims=True)
        mean = mx.where(mx.arange(keys.shape[3]) >= self.still, mean, 0.0)
        self._full = ((keys.astype(mx.float32) - mean).astype(keys.dtype), self._full[1])
        self._mean = mean if self._mean is None else self._mean + mean

    def _make_room(self, count: int) -> None:
        """Buffers of our own with room for `count` more columns."""
        assert self._full is not None and self._rows is not None
        need = self._packed + count
        if self._owned and self._buffers[0] and need <= self._buffers[0][0].shape[2]:
            return
        room = -(-need // GROW_STEP) * GROW_STEP - self._packed
        batch, groups = self._full[0].shape[:2]
        sides = []
        for rows, buffers in zip(self._rows, self._buffers, strict=True):
            side = rows.buffers(batch, groups, room)
            if self._packed:
                side = [mx.concatenate([a[:, :, : self._packed], b], 2) for a, b in zip(buffers, side, strict=True)]
            sides.append(side)
        self._buffers, self._owned = (sides[0], sides[1]), True

    def _view(self, buffers: Buffers, end: int) -> Buffers:
        return [buffer[:, :, self._dropped : end] for buffer in buffers]

    def _drop(self, count: int) -> None:
        """Let the first `count` columns go; never where they are sinks."""
        if count <= 0 or self._full is None:
            return
        gone = min(count, self._packed - self._dropped)
        self._dropped += gone
        if self._dropped == self._packed or self._dropped >= GROW_STEP:
            self._compact()
        if gone < count:
            k, v = self._full
            self._full = (mx.contiguous(k[:, :, count - gone :]), mx.contiguous(v[:, :, count - gone :]))
        if self._padding is not None:
            self._padding = [max(0, p - count) for p in self._padding]

    def _compact(self) -> None:
        """Free what was dropped."""
        if not self._dropped:
            return
        left = self._packed - self._dropped
        keys, values = ([mx.contiguous(b) for b in self._view(side, self._packed)] if left else [] for side in self._buffers)
        self._buffers, self._packed, self._dropped, self._owned = (keys, values), left, 0, False


def _none(like: mx.array) -> mx.array:
    """No columns; a slice would hold all of what it was cut from."""
    return mx.zeros((*like.shape[:2], 0, like.shape[3]), like.dtype)


def _joined(old: mx.array, new: mx.array) -> mx.array:
    new = new.astype(old.dtype)
    return mx.concatenate([old, new], 2) if old.shape[2] else new


def _without(full: mx.array, head: np.ndarray, end: int) -> mx.array:
    """The columns `head` [B, N] of each row, then those from `end` on."""
    rest = full[:, :, end:]
    if not head.shape[1]:
        return mx.contiguous(rest) if rest.shape[2] else _none(full)
    even = bool((head == np.arange(head.shape[1])).all())
    return mx.concatenate([full[:, :, : head.shape[1]] if even else gather(full, head), rest], 2)
