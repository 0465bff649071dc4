"""The affine code format against MLX's own quantizer, for every width and group size."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from optiq.kernels import affine
from optiq.kernels.affine import BITS, GROUP_SIZES, Coded, pack, rounded, unpack

ALL = [(bits, group_size) for bits in BITS for group_size in GROUP_SIZES]


def weight(*shape: int, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    return mx.array(np.random.default_rng(1).standard_normal(shape).astype(np.float32)).astype(dtype)


@pytest.mark.parametrize(("bits", "group_size"), ALL)
def test_packing_is_mlx_layout(bits: int, group_size: int) -> None:
    words, _, _ = mx.quantize(weight(5, 256), group_size, bits)
    codes = unpack(words, bits)
    assert codes.shape == (5, 256) and int(codes.max()) < 2**bits
    assert mx.array_equal(pack(codes, bits), words)


@pytest.mark.parametrize(("bits", "group_size"), ALL)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_dense_values_are_mlx_values(bits: int, group_size: int, dtype: mx.Dtype) -> None:
    words, scales, biases = mx.quantize(weight(5, 256, dtype=dtype), group_size, bits)
    coded = Coded(unpack(words, bits), scales.astype(mx.float32), biases.astype(mx.float32), bits, group_size)
    expected = mx.dequantize(words, scales.astype(mx.float32), biases.astype(mx.float32), group_size, bits)
    np.testing.assert_allclose(np.array(coded.dense()), np.array(expected), rtol=0, atol=1e-6)
    assert mx.array_equal(coded.words(), words)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_survives_at_every_place(bits: int) -> None:
    codes = mx.array(np.random.default_rng(bits).integers(0, 2**bits, (3, 2, 96)).astype(np.uint32))
    edges = mx.where(mx.arange(96) % 2 == 0, 0, 2**bits - 1).astype(mx.uint32)
    for values in (codes, edges[None], mx.full((1, 32), 2**bits - 1, dtype=mx.uint32)):
        words = pack(values, bits)
        assert words.dtype == mx.uint32 and words.shape[-1] == values.shape[-1] * bits // 32
        assert mx.array_equal(unpack(words, bits), values)


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="other devices keep buffers of their own sizes")
@pytest.mark.parametrize("bits", BITS)
def test_packing_needs_little_beside_the_codes(bits: int) -> None:
    codes = mx.zeros((2048, 512), dtype=mx.uint32)
    mx.eval(codes)
    for work, given in ((pack, codes), (unpack, pack(codes, bits))):
        mx.eval(given)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(work(given, bits))
        assert mx.get_peak_memory() - before < 2.5 * codes.nbytes


def test_expert_axes_lead_through() -> None:
    words, scales, biases = mx.quantize(weight(3, 4, 64, dtype=mx.float32), 32, 6)
    coded = Coded(unpack(words, 6), scales, biases, 6, 32)
    np.testing.assert_allclose(np.array(coded.dense()), np.array(mx.dequantize(words, scales, biases, 32, 6)), atol=1e-6)


def test_rounded_values_are_exact_in_the_stored_type() -> None:
    x = weight(1000, dtype=mx.float32)
    for dtype in (mx.bfloat16, mx.float16):
        once = rounded(x, dtype)
        assert once.dtype == mx.float32
        assert mx.array_equal(rounded(once, dtype), once) and not mx.array_equal(once, x)


def test_the_widths_are_those_of_the_plan() -> None:
    from optiq.plan.size import AFFINE_BITS, AFFINE_GROUP_SIZES

    assert tuple(AFFINE_BITS) == affine.BITS and tuple(AFFINE_GROUP_SIZES) == affine.GROUP_SIZES
