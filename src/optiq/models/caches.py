"""Caches of a loaded model: made by its architecture, measured, marked and brought back to a mark.

Attention layers keep keys and values per token and can be cut back by a number of tokens. Recurrent layers (gated delta
net, short convolutions) keep one state and cannot, and neither can a rotating window once it is full; a `Mark` holds
copies of those. Data in: a model from `optiq.models.load`. Data out: mlx-lm's cache objects, one per layer.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from optiq.kernels import native

Caches = list[Any]


def make_caches(model: Any) -> Caches:
    """Fresh caches, one per layer, of the kinds that the architecture asks for.

    With native kernels plain key/value caches are of a class that appends in place (`_growing_cache`).
    """
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    caches = list(make_prompt_cache(model))
    if native.module() is None:
        return caches
    return [_growing_cache()() if type(cache) is KVCache else cache for cache in caches]


@functools.cache
def _growing_cache() -> type:
    """mlx-lm's `KVCache` with its step written into the buffer instead of into a copy of the buffer.

    A buffer belongs to one cache. Whoever reads or sets `state` may hold its arrays, so the next append copies, as stock does.
    """
    from mlx_lm.models.cache import KVCache

    fast = native.module()
    assert fast is not None

    class GrowingCache(KVCache):
        """See `_growing_cache`."""

        owned = False

        def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
            start, end = self.offset, self.offset + keys.shape[2]
            if not self.owned or end > self.keys.shape[2] or keys.dtype != self.keys.dtype or values.dtype != self.values.dtype:
                self.owned = True
                return super().update_and_fetch(keys, values)
            self.keys = fast.append(self.keys, keys, start)
            self.values = fast.append(self.values, values, start)
            self.offset = end
            return self.keys_and_values()

        @property
        def state(self) -> Any:
            self.owned = False
            return copy.copy(self.keys), copy.copy(self.values), self.offset  # item assignment changes the object itself

        @state.setter
        def state(self, value: Any) -> None:
            self.keys, self.values, self.offset = map(copy.copy, value)
            self.owned = False

        def __deepcopy__(self, memo: Any) -> Any:
            other = GrowingCache()
            other.state = self.state
            return other

    return GrowingCache


def cache_arrays(caches: Caches) -> list[mx.array]:
    """Every array that the caches hold now."""
    return [value for _, value in tree_flatten([cache.state for cache in caches]) if isinstance(value, mx.array)]


def cache_bytes(caches: Caches) -> int:
    """Bytes of those arrays, room that is kept for later tokens included."""
    return sum(int(array.nbytes) for array in cache_arrays(caches))


def can_cut(caches: Caches) -> bool:
    """Whether every layer can drop its last tokens."""
    return all(_cuttable(cache) for cache in caches)


def cut(caches: Caches, tokens: int) -> None:
    """Drop the last `tokens` tokens of every layer; only where `can_cut`."""
    for cache in caches:
        cache.trim(tokens)


class Mark:
    """The caches as they are now, to come back to.

    Layers that can be cut cost nothing: their length is remembered. Of the others a copy is kept.
    """

    def __init__(self, caches: Caches) -> None:
        self._kept = [cache.offset if _cuttable(cache) else copy.deepcopy(cache) for cache in caches]

    def restore(self, caches: Caches) -> Caches:
        """The caches as they were; `caches` must have grown from the marked ones. The mark stays usable."""
        found = []
        for cache, kept in zip(caches, self._kept, strict=True):
            if isinstance(kept, int):
                cache.trim(cache.offset - kept)
                found.append(cache)
            else:
                found.append(copy.deepcopy(kept))
        return found


def _cuttable(cache: Any) -> bool:
    """A rotating window says yes only until it is full, so kinds are asked for, not the moment's answer."""
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    return isinstance(cache, KVCache | QuantizedKVCache)


@contextmanager
def wired() -> Iterator[None]:
    """On Metal, keep the weights resident while tokens are made, as mlx-lm does; elsewhere nothing."""
    if not mx.metal.is_available():
        yield
        return
    before = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_wired_limit(before)
