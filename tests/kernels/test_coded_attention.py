"""Attention over affine codes against its definition."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from optiq.kernels import native
from optiq.kernels.coded_attention import Coded, attend, few, reference


def coded(x: mx.array, bits: int, group_size: int) -> Coded:
    width = x.shape[-1]
    filled = -(-width // group_size) * group_size - width
    return Coded(*mx.quantize(mx.pad(x, [(0, 0)] * 3 + [(0, filled)]), group_size, bits), bits, group_size, width)


@pytest.mark.parametrize("with_native", [True, False])
@pytest.mark.parametrize(("bits", "value_bits"), [(2, 8), (3, 3), (4, 4), (5, 6), (6, 5), (8, 2)])
@pytest.mark.parametrize(("width", "group_size"), [(64, 64), (128, 32), (80, 32)])
def test_it_is_the_definition(
    bits: int, value_bits: int, width: int, group_size: int, with_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_native:
        monkeypatch.setattr(native, "module", lambda: None)
    elif native.module() is None:
        pytest.skip("no native kernels")
    mx.random.seed(0)
    k, v = mx.random.normal((2, 2, 90, width)) + 1, mx.random.normal((2, 2, 90, width))
    keys, values = coded(k, bits, group_size), coded(v, value_bits, group_size)
    holes = mx.random.uniform(shape=(2, 1, 3, 90)) < 0.5
    for length, mask in [(1, None), (3, "causal"), (3, holes), (3, mx.where(holes, 0.0, -4.0)), (3, None)]:
        q = mx.random.normal((2, 6, length, width))
        found, expected = (op(q, keys, values, scale=0.1, mask=mask) for op in (attend, reference))
        assert found.shape == (2, 6, length, width)
        np.testing.assert_allclose(np.array(found), np.array(expected), atol=3e-4)
        half = attend(q.astype(mx.bfloat16), keys, values, scale=0.1, mask=mask)
        assert half.dtype == mx.bfloat16
        np.testing.assert_allclose(np.array(half.astype(mx.float32)), np.array(expected), atol=0.03)


def test_few() -> None:
    assert few(mx.zeros((1, 16, 2, 8)), 2) and not few(mx.zeros((1, 16, 3, 8)), 2) and few(mx.zeros((4, 2, 16, 8)), 2)
