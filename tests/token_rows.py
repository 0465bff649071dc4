"""Random tokens, and a cache beside what it was given."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from optiq.kernels import attention
from optiq.kv.cache import PackedCache
from optiq.kv.recipe import Recipe

GROUPS, HEADS, WIDTH = 2, 4, 32
SMALL = {"sinks": 2, "tail": 6}

KINDS = {
    "affine 4": Recipe("affine", 4, 4, group_size=32),
    "affine 3 and 8": Recipe("affine", 8, 3, group_size=64),
    "affine tail": Recipe("affine", 5, 6, group_size=32, sinks=2, tail=6),
    "turbo 3": Recipe("turbo", 3, 3),
    "turbo 4 and 1": Recipe("turbo", 4, 1, sinks=3),
    "turbo values": Recipe("turbo", 16, 2),
    "best 4": Recipe("best", 4, 4, **SMALL, scaling="fit"),
    "best 8 and 5": Recipe("best", 8, 5, **SMALL, scaling="fit"),
    "best without tail": Recipe("best", 6, 4, scaling="fit"),
}
# The largest relative error of a vector of width 32 that was seen at a width, with room; full precision is exact.
ERROR = {1: 0.95, 2: 0.7, 3: 0.45, 4: 0.3, 5: 0.2, 6: 0.1, 8: 0.03, 16: 1e-5}

NEAR = 3e-4  # of attention: native products over codes take queries in 16-bit fixed point


class Tokens:
    """Keys, values and queries of one sequence after the other."""

    def __init__(self, seed: int = 0, dtype: mx.Dtype = mx.float32) -> None:
        self._generator, self._dtype = np.random.default_rng(seed), dtype
        self._centre = 2 * self._generator.standard_normal((1, GROUPS, 1, WIDTH))

    def draw(self, batch: int, length: int) -> tuple[mx.array, mx.array, mx.array]:
        """Queries [B, H, L, D], keys and values [B, G, L, D]; keys lie around one point."""
        shape = (batch, GROUPS, length, WIDTH)
        q = self._generator.standard_normal((batch, HEADS, length, WIDTH))
        k = self._generator.standard_normal(shape) + self._centre
        v = self._generator.standard_normal(shape)
        return tuple(mx.array(x, self._dtype) for x in (q, k, v))  # type: ignore[return-value]


def dense(cache: PackedCache, q: mx.array, mask: mx.array | str | None, scale: float = 0.2) -> mx.array:
    """Attention over what the cache gives as dense keys and values."""
    k, v = cache.keys_and_values()
    return attention.reference(q, k, v, scale=scale, mask=mask)


def errors(found: mx.array, expected: mx.array) -> np.ndarray:
    """Relative error of each vector."""
    difference = np.array(found.astype(mx.float32)) - np.array(expected.astype(mx.float32))
    norms = np.linalg.norm(np.array(expected.astype(mx.float32)), axis=-1)
    return np.linalg.norm(difference, axis=-1) / norms
