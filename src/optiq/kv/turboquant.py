"""TurboQuant caches under the names of the package `turboquant_mlx`, for stock mlx-lm.

    model, tokenizer = mlx_lm.load(...)
    apply_patch()
    cache = [TurboQuantKVCache(bits=3) if isinstance(c, KVCache) else c for c in model.make_cache()]

Rotated codes with one scale per vector: 3 bits take 3 bits, and there is no full-precision copy. Attention reads the codes.

Source: TurboQuant, arXiv 2504.19874, its form without the QJL residual (tests/kv/test_qjl.py measures why).
"""

from __future__ import annotations

import warnings
from typing import Any

from optiq.kv.cache import PackedCache
from optiq.kv.recipe import FULL, Recipe
from optiq.models import caches, patch


class TurboQuantKVCache(PackedCache):
    """A key/value cache of rotated codes, in place of mlx-lm's `KVCache`.

    Args:
        bits: of a code, 1 to 4.
        seed: of the signs before the rotation; values take the next one.
        fused: accepted; attention always reads the codes.
        sparse_v_threshold: not used, with a warning: every value counts.
        v_only: pack values alone.

    Raises:
        InputError: a width that there is not.
    """

    def __init__(
        self,
        bits: int = 3,
        seed: int = 42,
        fused: bool = False,
        sparse_v_threshold: float | None = None,
        v_only: bool = False,
    ) -> None:
        if sparse_v_threshold is not None:
            warnings.warn("sparse_v_threshold has no effect: every value counts", stacklevel=2)
        super().__init__(Recipe("turbo", FULL if v_only else bits, bits, seed=seed))


class VOnlyTurboQuantCache(TurboQuantKVCache):
    """`TurboQuantKVCache` that packs values and leaves keys as they are; arguments as there."""

    def __init__(self, bits: int = 3, seed: int = 42, sparse_v_threshold: float | None = None) -> None:
        super().__init__(bits, seed, sparse_v_threshold=sparse_v_threshold, v_only=True)


_CLASSES = (TurboQuantKVCache, VOnlyTurboQuantCache)


def make_adaptive_cache(
    num_layers: int,
    bits: int = 3,
    fp16_layers: int = 4,
    seed: int = 42,
    fused: bool = False,
    model: Any = None,
) -> list[Any]:
    """Caches whose first and last `fp16_layers` layers stay in full precision.

    Args:
        num_layers: of the model.
        bits, seed, fused: as `TurboQuantKVCache`.
        fp16_layers: so many at each end; of a `model`, counted among its layers with a plain key/value cache.
        model: where given, layers with another kind of cache keep theirs.
    """
    found = caches.stock_caches(num_layers, model)
    plain = [index for index, cache in enumerate(found) if caches.is_plain(cache)]
    for index in plain[fp16_layers : len(plain) - fp16_layers]:
        found[index] = TurboQuantKVCache(bits, seed, fused)
    return found


def apply_patch() -> None:
    """Let stock mlx-lm's attention use these caches; after `mlx_lm.load`, or before. Twice is once."""
    patch.apply(_CLASSES)


def remove_patch() -> None:
    """Undo `apply_patch`."""
    patch.remove(_CLASSES)
