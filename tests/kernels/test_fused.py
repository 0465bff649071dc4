"""Products that belong together: the same bits as one by one, and the same checks."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from optiq.kernels import fused, native
from optiq.kernels.quantized import quantized_matmul

pytestmark = pytest.mark.skipif(native.module() is None, reason="the native kernels were not built here")


def weight(rows: int, columns: int, group_size: int, bits: int) -> fused.Weight:
    values = np.random.default_rng(rows + bits).standard_normal((rows, columns)).astype(np.float32)
    return (*mx.quantize(mx.array(values), group_size, bits), group_size, bits)


@pytest.mark.parametrize("count", [1, 5, 16])
def test_projections_are_the_single_products_bit_for_bit(count: int) -> None:
    x = mx.array(np.random.default_rng(count).standard_normal((count, 128)).astype(np.float32))
    weights = [weight(48, 128, 64, 4), weight(7, 128, 32, 3), weight(130, 128, 128, 8)]
    for y, (codes, scales, biases, group_size, bits) in zip(fused.project(x, weights), weights, strict=True):
        assert mx.array_equal(y, quantized_matmul(x, codes, scales, biases, group_size=group_size, bits=bits))


def test_a_weight_of_another_width_is_refused() -> None:
    x = mx.zeros((1, 128))
    narrow, wide = weight(64, 64, 32, 4), weight(64, 128, 64, 4)
    with pytest.raises(ValueError, match="does not fit"):
        fused.project(x, [wide, narrow])
    with pytest.raises(ValueError, match="does not fit"):
        fused.mlp(x, wide, wide, wide)
    with pytest.raises(ValueError, match="gate and up"):
        fused.mlp(x, wide, weight(32, 128, 64, 4), narrow)
