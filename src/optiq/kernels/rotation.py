"""The randomized Hadamard rotation: signs, then a Walsh-Hadamard transform.

    rotate(x)   = H (s * x)         unrotate(y) = s * (H y)         H symmetric, orthogonal

It spreads what stands out in a few coordinates over all of them, and keeps lengths and inner products. A width that is not a
power of two is rotated in blocks of its largest factor that is one: 96 as three blocks of 32, 80 as five of 16.

Source: N. Ailon and B. Chazelle, "The fast Johnson-Lindenstrauss transform" (2009); for caches: TurboQuant, arXiv 2504.19874.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np


def block_of(width: int) -> int:
    """The largest power of two that divides a width."""
    return width & -width


@cache
def _signs(width: int, seed: int) -> tuple[float, ...]:
    return tuple(np.random.default_rng(seed).choice([-1.0, 1.0], width).tolist())


def signs(width: int, seed: int) -> mx.array:
    """[D] float32 of random signs; the same for a seed on every machine."""
    return mx.array(_signs(width, seed), mx.float32)


def transform(x: mx.array) -> mx.array:
    """H x over the last axis [..., D], in float32."""
    if not x.size:  # which hadamard_transform refuses
        return x.astype(mx.float32)
    block = block_of(x.shape[-1])
    parts = x.astype(mx.float32).reshape(*x.shape[:-1], x.shape[-1] // block, block)
    return mx.hadamard_transform(parts, scale=block**-0.5).reshape(x.shape)
