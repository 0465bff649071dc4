"""Products that belong together, for the few rows of a decoding step: several projections of one x, and a gated MLP.

    project(x, W_1 .. W_n) = (x W_1ᵀ, .. , x W_nᵀ)         mlp(x) = (silu(x Gᵀ) * x Uᵀ) Dᵀ

Rows are the product of x's leading dimensions. Up to `FEW_ROWS` rows with native kernels this is one operation; else it is
composed of `quantized_matmul`, so callers need not care.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import mlx.core as mx

from optiq.kernels import gates, native
from optiq.kernels.quantized import quantized_matmul

FEW_ROWS = 16

# codes [O, I * bits / 32], scales, biases [O, I / group_size], group size, bits
Weight = tuple[mx.array, mx.array, mx.array, int, int]


def project(x: mx.array, weights: Sequence[Weight]) -> list[mx.array]:
    """x [..., I] by each weight: one [..., O] each, in the type of x."""
    fast = native.module()
    if fast is not None and prod(x.shape[:-1]) <= FEW_ROWS:
        return list(fast.project(x, list(weights)))
    return [_product(x, weight) for weight in weights]


def mlp(x: mx.array, gate: Weight, up: Weight, down: Weight) -> mx.array:
    """x [..., I] through a gated MLP with SiLU: [..., O of down]; native forms keep what lies between in float32."""
    fast = native.module()
    if fast is not None and prod(x.shape[:-1]) <= FEW_ROWS:
        return fast.mlp(x, gate, up, down)
    return _product(gates.swiglu(_product(x, gate), _product(x, up)), down)


def _product(x: mx.array, weight: Weight) -> mx.array:
    codes, scales, biases, group_size, bits = weight
    return quantized_matmul(x, codes, scales, biases, group_size=group_size, bits=bits)
