"""Caches of a loaded model: made by its architecture, measured, marked and brought back to a mark.

Attention layers keep keys and values per token and can be cut back by a number of tokens. Recurrent layers (gated delta
net, short convolutions) keep one state and cannot, and neither can a rotating window once it is full; a `Mark` holds
copies of those. Data in: a model from `optiq.models.load`. Data out: mlx-lm's cache objects, one per layer.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from optiq.kernels import native
from optiq.models.topology import block_list

Caches = list[Any]


def make_caches(model: Any) -> Caches:
    """Fresh caches, one per layer, of the kinds that the architecture asks for.

    With native kernels plain key/value caches are of a class that appends in place (`_growing_cache`).
    """
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    caches = list(make_prompt_cache(model))
    return [growing_cache() if type(cache) is KVCache else cache for cache in caches]


def growing_cache() -> Any:
    """An empty plain key/value cache, of the class that appends in place where there are native kernels."""
    from mlx_lm.models.cache import KVCache

    return KVCache() if native.module() is None else _growing_cache()()


def cache_kind(cache: Any) -> str:
    """`plain` keys and values, recurrent `state`, or `other`."""
    from mlx_lm.models.cache import ArraysCache, KVCache

    if isinstance(cache, KVCache):
        return "plain"
    return "state" if isinstance(cache, ArraysCache) else "other"


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
        settled = False  # the buffer is on large pages, as far as the system gave them

        def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
            start, end = self.offset, self.offset + keys.shape[2]
            if not self.owned or end > self.keys.shape[2] or keys.dtype != self.keys.dtype or values.dtype != self.values.dtype:
                self.owned, self.settled = True, False
                return super().update_and_fetch(keys, values)
            self.keys = fast.append(self.keys, keys, start, not self.settled)
            self.values = fast.append(self.values, values, start, not self.settled)
            self.settled = True
            self.offset = end
            return self.keys_and_values()

        @property
        def arrays(self) -> list[mx.array]:
            """What it holds, for those who compute it and let it go."""
            return [] if self.keys is None else [self.keys, self.values]

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


def evaluate(caches: Caches) -> None:
    """Compute what the caches hold now; unlike `cache_arrays` this leaves them the owners of their buffers."""
    mx.eval([getattr(cache, "arrays", None) or cache_arrays([cache]) for cache in caches])


def cache_bytes(caches: Caches) -> int:
    """What the caches hold, room that is kept for later tokens included."""
    return sum(int(cache.nbytes) for cache in caches)


@dataclass(frozen=True)
class KeyValueLayer:
    """A layer with a key/value cache of its own.

    Args:
        index: of the layer in the model.
        place: of its cache in the list of caches.
        window: how many tokens a query sees; 0 for all.
        latent: what is cached are MLA latents.
        rotary: how many of the key channels, the first ones, turn with the position; None where that is not known.
        interleaved: they turn in neighbouring pairs; else channel i of the first half with channel i of the second.
    """

    index: int
    place: int
    window: int
    latent: bool
    rotary: int | None
    interleaved: bool = False


def key_value_layers(model: Any) -> list[KeyValueLayer]:
    """The layers with a key/value cache of their own, in order; those that keep a state or share a cache are left out."""
    layers, caches = block_list(model), make_caches(model)
    found = []
    for index, place in enumerate(_cache_places(layers, len(caches))):
        plain = None if place is None else _plain(caches[place])
        if plain is None:
            continue
        assert place is not None
        parts = [module for _, module in layers[index].named_modules()]
        ropes = [getattr(part, "rope", None) for part in parts]
        widths = [getattr(rope, "dims", getattr(rope, "dim", None)) for rope in ropes if rope is not None]
        rotary = widths[0] if widths and isinstance(widths[0], int) else None
        latent = any(hasattr(part, "kv_lora_rank") for part in parts)
        pairs = any(getattr(rope, "traditional", False) for rope in ropes if rope is not None)
        found.append(KeyValueLayer(index, place, getattr(plain, "max_size", 0), latent, rotary, pairs))
    return found


def stock_caches(count: int, model: Any = None) -> Caches:
    """What mlx-lm makes for a model; without one, `count` plain key/value caches."""
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    return [KVCache() for _ in range(count)] if model is None else list(make_prompt_cache(model))


def is_plain(cache: Any) -> bool:
    """Whether it is mlx-lm's plain key/value cache."""
    from mlx_lm.models.cache import KVCache

    return isinstance(cache, KVCache)


def with_cache(cache: Any, own: Any) -> Any:
    """What stands in a layer's place in the list of caches with `own` for its key/value cache."""
    from mlx_lm.models.cache import CacheList

    if not isinstance(cache, CacheList):
        return own
    plain = _plain(cache)
    return CacheList(*(own if part is plain else part for part in cache.caches))


def _plain(cache: Any) -> Any:
    """The one stock key/value cache of a layer; None where there is none, or more than one."""
    from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache

    if isinstance(cache, CacheList):
        found = [part for part in cache.caches if _plain(part) is not None]
        return found[0] if len(found) == 1 else None
    kept = isinstance(cache, RotatingKVCache) and cache.keep == 0
    return cache if isinstance(cache, KVCache) or kept else None


def _cache_places(layers: Sequence[Any], count: int) -> list[int | None]:
    """For each layer, which cache is its own: Nemotron-H gives none to feed-forward layers, Gemma's last layers share."""
    kinds = [getattr(layer, "block_type", None) for layer in layers]
    own = [kind in ("M", "*") for kind in kinds]  # mixers of Nemotron-H
    if count != len(layers) and sum(own) == count:
        order = iter(range(count))
        return [next(order) if mixer else None for mixer in own]
    return [index if index < count else None for index in range(len(layers))]


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

    return isinstance(cache, KVCache | QuantizedKVCache) or bool(getattr(cache, "cuttable", False))


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
