"""A layer's cache for a whole row of text at once, as if it had come token by token.

Queries see each key and value as a real cache (`optiq.kv.cache`) shows it to them: in full precision or as it was packed,
whatever it is when the query comes. So one pass over a row gives what as many decoding steps would give
(`tests/kv/test_simulation.py` compares the two). Without a recipe it is a full-precision cache that can be watched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np

from optiq.kernels import attention
from optiq.kv.columns import LEAST_FOR_MEAN, pack_step
from optiq.kv.places import Places, causal
from optiq.kv.recipe import Recipe
from optiq.kv.rows import NONE, Rows, Statistics, key_rows, value_rows
from optiq.models import caches as stock
from optiq.models.caches import Caches, KeyValueLayer
from optiq.models.parts import Parts

Watch = Callable[[mx.array, mx.array, mx.array], None]


class SimulatedCache:
    """One layer's cache; it takes one row, or a batch of rows of one length, in one step.

    Args:
        layer: which.
        dtype: in which a real cache keeps full-precision tokens.
        recipe: None for full precision.
        known: statistics of the layer.
        at_once: every token is packed as it comes and only sinks are left out (the tail is not looked at).
        watch: called with queries [B, H, L, D], keys and values [B, G, L, ...] as they come.
    """

    def __init__(
        self,
        layer: KeyValueLayer,
        dtype: mx.Dtype,
        recipe: Recipe | None = None,
        known: Statistics = NONE,
        at_once: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.layer, self.recipe, self.known = layer, recipe, known
        self.offset = 0
        self._dtype, self._at_once, self._watch = dtype, at_once, watch
        self._sides: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Take in all keys [B, G, L, D] and values [B, G, L, Dv]."""
        if self._sides is not None:
            raise ValueError("a simulated cache takes one row at once")
        self._sides = (keys.astype(self._dtype), values.astype(self._dtype))
        self.offset = keys.shape[2]
        return self._sides

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> mx.array | str | None:
        """As a cache of the architecture makes it before the first token."""
        window = self.layer.window or window_size or 0
        if return_array or (window and window < N):
            return causal(Places((0,), 0, N, 0), N, window)
        return None if N == 1 else "causal"

    def attend(
        self, queries: mx.array, scale: float, mask: mx.array | str | None = None, sinks: mx.array | None = None
    ) -> mx.array:
        """Attention of all queries [B, H, L, D]; arguments as `PackedCache.attend`."""
        assert self._sides is not None
        keys, values = self._sides
        if self._watch is not None:
            self._watch(queries, keys, values)
        if self.recipe is not None:
            first = 0 if self.layer.window else self.recipe.sinks
            keys = self._centred(self.recipe, keys)
            pairs = list(zip((keys, values), self._packed(self.recipe, keys, values), strict=True))
            if self._at_once:
                keys, values = (mx.concatenate([a[:, :, :first], b[:, :, first:]], 2) for a, b in pairs)
            else:
                keys, values = (mx.concatenate([a, b], 2) for a, b in pairs)
                mask = self._mask(mask, first)
        found = attention.attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
        return found.astype(queries.dtype)

    def _centred(self, recipe: Recipe, keys: mx.array) -> mx.array:
        """Keys without their mean: the known one, or that of the first keys as `Columns` finds it."""
        mean = self.known.key_mean if recipe.centred else None
        wide = keys.astype(mx.float32)
        if mean is not None:
            return (wide - mean[:, None]).astype(keys.dtype)
        still, sinks = self.layer.rotary, 0 if self.layer.window else recipe.sinks
        held = sinks + recipe.tail + pack_step(recipe) if recipe.tail else sinks + 1
        if not recipe.centred or still is None or held > keys.shape[2] or held - sinks < LEAST_FOR_MEAN:
            return keys
        found = wide[:, :, sinks:held].mean(2, keepdims=True)
        return (wide - mx.where(mx.arange(keys.shape[3]) >= still, found, 0.0)).astype(keys.dtype)

    def _packed(self, recipe: Recipe, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        groups = keys.shape[1]
        k = key_rows(recipe, groups, keys.shape[3], keys.dtype, self.known)
        v = value_rows(recipe, groups, values.shape[3], values.dtype, self.known)
        return _round_trip(k, keys), _round_trip(v, values)

    def _mask(self, mask: mx.array | str | None, first: int) -> mx.array:
        """Who sees whom, [..., L, 2 S]: in full precision, then as packed."""
        assert self.recipe is not None
        length = self.offset
        column = mx.arange(length)
        end = first + mx.array(packed_counts(self.recipe, length, first))
        packed = (column[None] >= first) & (column[None] < end[:, None])
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            return mx.concatenate([mx.where(packed, -mx.inf, mask), mx.where(packed, mask, -mx.inf)], -1)
        seen = mask if isinstance(mask, mx.array) else causal(Places((0,), 0, length, 0), length, self.layer.window)
        return mx.concatenate([seen & ~packed, seen & packed], -1)


def packed_counts(recipe: Recipe, length: int, sinks: int) -> np.ndarray:
    """How many tokens are packed when each of `length` tokens attends, fed one by one (as `Columns` packs them)."""
    found, packed = np.zeros(length, np.int64), 0
    for token in range(length):
        if recipe.tail:
            due = token - packed - sinks - recipe.tail
            packed += due if due >= pack_step(recipe) else 0
        else:
            packed = max(0, token + 1 - sinks)
        found[token] = packed
    return found


def make_caches(
    parts: Parts,
    dtype: mx.Dtype,
    recipes: Mapping[int, Recipe],
    known: Mapping[int, Statistics] | None = None,
    at_once: bool = False,
    watches: Mapping[int, Watch] | None = None,
) -> Caches:
    """Caches for one pass: simulated in every layer with a key/value cache, else what the architecture asks for.

    Args:
        parts: the model.
        dtype: see `SimulatedCache`.
        recipes: by layer index; other layers are in full precision.
        known: statistics by layer index.
        at_once: see `SimulatedCache`.
        watches: by layer index.
    """
    found = stock.make_caches(parts.model)
    for layer in parts.layers:
        own = SimulatedCache(
            layer,
            dtype,
            recipes.get(layer.index),
            (known or {}).get(layer.index, NONE),
            at_once,
            (watches or {}).get(layer.index),
        )
        found[layer.place] = stock.with_cache(found[layer.place], own)
    return found


def _round_trip(rows: Rows, x: mx.array) -> mx.array:
    """Vectors [B, G, L, D] as they come out of a cache, in their own type."""
    buffers = rows.buffers(x.shape[0], x.shape[1], x.shape[2])
    return rows.unpack(rows.store(buffers, 0, x), mx.float32)
