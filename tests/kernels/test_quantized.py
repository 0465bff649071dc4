"""Products with coded weights against NumPy in float64: every width and group size, rows, forms, strides, determinism."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_levels import at_level, each_level, needs_native
from optiq.kernels.affine import BITS, GROUP_SIZES, Coded, unpack
from optiq.kernels.quantized import (
    dequantize,
    dequantize_rows,
    gather_qmm,
    gather_reference,
    quantized_matmul,
    reference,
    values,
)

pytestmark = needs_native

TYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
OF_RESULT = {"float32": 2**-23, "bfloat16": 2**-8, "float16": 2**-10}
# Of sum |x| |w|: float32 sums; weights rounded to bfloat16; float16 in two bfloat16 parts (native/kernels/gemm.h).
OF_SUM = {"float32": 3e-6, "bfloat16": 2**-8, "float16": 2**-14}
ALL = [(bits, group) for bits in BITS for group in GROUP_SIZES]


class Weight:
    """A coded matrix [O, I], or a bank of them, of random codes, and its exact values."""

    def __init__(self, rng: np.random.Generator, *shape: int, bits: int, group: int, dtype: str = "bfloat16") -> None:
        *rows, columns = shape
        words = rng.integers(0, 2**32, (*rows, columns * bits // 32), dtype=np.uint32)
        factors = rng.standard_normal((2, *rows, columns // group)).astype(np.float32) / np.float32([[2**bits], [2]]).reshape(
            2, *[1] * len(shape)
        )
        scales, biases = (mx.array(f).astype(TYPES[dtype]) for f in factors)
        self.parts = (mx.array(words), scales, biases)
        self.layout = {"bits": bits, "group_size": group}
        flat = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").reshape(*shape, bits)
        codes = flat @ (1 << np.arange(bits))
        s, b = (np.repeat(exact(f), group, axis=-1) for f in (scales, biases))
        self.dense = codes * s + b

    def product(self, x: mx.array, **form: bool) -> mx.array:
        return quantized_matmul(x, *self.parts, **self.layout, **form)


def numbers(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(TYPES[dtype])


def exact(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32), dtype=np.float64)


def assert_product(found: mx.array, x: mx.array, w: np.ndarray, dtype: str, fixed_point_group: int = 0) -> None:
    """found = x w. Where `fixed_point_group` is given, x was rounded to 1/65278 of the largest number of its group."""
    a = exact(x)
    expected = a @ w
    bound = OF_SUM[dtype] * (np.abs(a) @ np.abs(w)) + OF_RESULT[dtype] * np.abs(expected) + 1e-30
    if fixed_point_group:
        step = np.abs(a.reshape(len(a), -1, fixed_point_group)).max(-1) / 32639
        off = np.repeat(step / 2, fixed_point_group, axis=-1) @ np.abs(w)
        bound = off + (OF_RESULT[dtype] * np.abs(expected) + 3e-6 * (np.abs(a) @ np.abs(w)))
    assert found.shape == expected.shape and str(found.dtype).endswith(dtype)
    worst = (np.abs(exact(found) - expected) / bound).max(initial=0)
    assert worst <= 1, f"{worst:.3g} times the bound"


@each_level
@pytest.mark.parametrize(("bits", "group"), ALL)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_width_and_group_size(level: str, bits: int, group: int, dtype: str) -> None:
    rng = np.random.default_rng(bits * group)
    w = Weight(rng, 37, group * 7, bits=bits, group=group, dtype=("float32", "bfloat16", "float16")[bits % 3])
    for rows in (1, 3, 16, 45):
        x, dy = numbers(rng, rows, group * 7, dtype=dtype), numbers(rng, rows, 37, dtype=dtype)
        with at_level(level):
            y, (back,) = w.product(x), mx.vjp(w.product, [x], [dy])[1]
            mx.eval(y, back)
        assert_product(y, x, w.dense.T, dtype, fixed_point_group=group if rows <= 16 else 0)
        assert_product(back, dy, w.dense, dtype)


@each_level
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    layout=st.sampled_from(ALL),
    dtype=st.sampled_from(sorted(TYPES)),
    rows=st.integers(1, 90),
    outer=st.integers(1, 300),
    groups=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_any_shape(level: str, layout: tuple[int, int], dtype: str, rows: int, outer: int, groups: int, seed: int) -> None:
    bits, group = layout
    rng = np.random.default_rng(seed)
    w = Weight(rng, outer, groups * group, bits=bits, group=group)
    x, dy = numbers(rng, rows, groups * group, dtype=dtype), numbers(rng, rows, outer, dtype=dtype)
    with at_level(level):
        y, back = w.product(x), w.product(dy, transpose=False)
        mx.eval(y, back)
    assert_product(y, x, w.dense.T, dtype, fixed_point_group=group if rows <= 16 else 0)
    assert_product(back, dy, w.dense, dtype)


@each_level
def test_deep_products(level: str) -> None:
    """More numbers than one block of the depth, forwards and backwards."""
    rng = np.random.default_rng(1)
    w = Weight(rng, 1100, 1536, bits=4, group=64)
    for dtype in TYPES:
        x, dy = numbers(rng, 20, 1536, dtype=dtype), numbers(rng, 20, 1100, dtype=dtype)
        with at_level(level):
            y, back = w.product(x), w.product(dy, transpose=False)
            mx.eval(y, back)
        assert_product(y, x, w.dense.T, dtype)
        assert_product(back, dy, w.dense, dtype)


@each_level
@pytest.mark.parametrize("rows", [5, 40])
def test_any_layout_of_every_input(level: str, rows: int) -> None:
    rng = np.random.default_rng(2)
    w = Weight(rng, 64, 128, bits=4, group=32)
    spread = [mx.array(np.repeat(np.array(p.astype(mx.float32) if p.dtype == mx.bfloat16 else p), 2, axis=1)) for p in w.parts]
    codes, scales, biases = (p[:, ::2] for p in spread)
    x = numbers(rng, 2, 128, rows).swapaxes(1, 2)
    with at_level(level):
        y = quantized_matmul(x, codes, scales, biases, **w.layout)
        mx.eval(y)
    assert y.shape == (2, rows, 64)
    for found, part in zip(y, x, strict=True):
        assert_product(found, part, w.dense.T, "float32", fixed_point_group=32)


@each_level
@pytest.mark.parametrize("dtype", TYPES)
def test_rows_do_not_see_each_other(level: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    w = Weight(rng, 90, 640, bits=4, group=64)
    for most, counts in ((16, (1, 2, 3, 5, 8, 13, 16)), (150, (17, 40, 131))):
        x = numbers(rng, most, 640, dtype=dtype)
        with at_level(level):
            whole, parts = w.product(x), [w.product(x[most - n :]) for n in counts]
            mx.eval(whole, parts)
            for n, part in zip(counts, parts, strict=True):
                assert mx.array_equal(whole[most - n :], part)
            assert mx.array_equal(whole, w.product(x))


@each_level
def test_a_number_that_is_not_finite_does_not_vanish(level: str) -> None:
    rng = np.random.default_rng(4)
    w = Weight(rng, 8, 64, bits=4, group=64)
    for rows in (2, 20):
        for bad in (np.nan, np.inf):
            x = np.array(numbers(rng, rows, 64))
            x[1, 5] = bad
            with at_level(level):
                y = np.array(w.product(mx.array(x)))
            assert not np.isfinite(y[1]).any() and np.isfinite(np.delete(y, 1, axis=0)).all()


@each_level
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("lead", "cells", "rows"),
    [((6, 1), (6, 2), 1), ((40, 1), (40, 3), 1), ((24,), (24,), 1), ((3,), (3,), 30), ((1,), (5,), 2), ((2, 9, 1), (2, 9, 2), 1)],
)
def test_experts(level: str, dtype: str, lead: tuple[int, ...], cells: tuple[int, ...], rows: int) -> None:
    rng = np.random.default_rng(5)
    w = Weight(rng, 4, 40, 64, bits=4, group=32, dtype=dtype)
    x, dy = numbers(rng, *lead, rows, 64, dtype=dtype), numbers(rng, *cells, rows, 40, dtype=dtype)
    numbered = rng.integers(0, 3, cells).astype(np.uint32)  # the fourth expert is never asked
    indices = mx.array(numbered)
    with at_level(level):
        (y,), (dx,) = mx.vjp(lambda x: gather_qmm(x, *w.parts, indices, **w.layout), [x], [dy])
        mx.eval(y, dx)
    wide = np.broadcast_to(exact(x), (*cells, rows, 64))
    expected = wide @ w.dense[numbered].swapaxes(-1, -2)
    back = exact(dy) @ w.dense[numbered]
    axes = tuple(i for i, (a, b) in enumerate(zip(lead, cells, strict=True)) if a == 1 and b > 1)
    back = back.sum(axes, keepdims=True)
    tolerance = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}[dtype]
    assert y.shape == expected.shape and y.dtype == TYPES[dtype] and dx.shape == x.shape
    np.testing.assert_allclose(exact(y), expected, rtol=tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(exact(dx), back, rtol=tolerance, atol=10 * tolerance)


def test_experts_are_stock_experts() -> None:
    rng = np.random.default_rng(6)
    w = Weight(rng, 5, 32, 64, bits=8, group=64, dtype="float32")
    x, indices = numbers(rng, 7, 1, 1, 64), mx.array(rng.integers(0, 5, (7, 2)))
    found, expected = (form(x, *w.parts, indices, **w.layout) for form in (gather_qmm, gather_reference))
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-4, atol=2e-3)


@each_level
@pytest.mark.parametrize(("bits", "group"), ALL)
def test_embedding_rows(level: str, bits: int, group: int) -> None:
    rng = np.random.default_rng(7)
    w = Weight(rng, 30, group * 5, bits=bits, group=group)
    indices = mx.array(rng.integers(0, 30, (2, 9)).astype(np.uint32))
    expected = w.dense[np.array(indices)]
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 2**-8), ("float16", 2**-11)):
        with at_level(level):
            found = dequantize_rows(indices, *w.parts, **w.layout, dtype=TYPES[dtype])
            mx.eval(found)
        assert found.dtype == TYPES[dtype] and found.shape == (2, 9, group * 5)
        assert (np.abs(exact(found) - expected) <= tolerance * np.abs(expected) + 1e-6).all()
    assert dequantize_rows(indices, *w.parts, **w.layout).dtype == mx.bfloat16
    one = dequantize_rows(mx.array(3), *w.parts, **w.layout, dtype=mx.float32)
    assert mx.array_equal(one, dequantize_rows(mx.array([3]), *w.parts, **w.layout, dtype=mx.float32)[0])


@each_level
@pytest.mark.parametrize("shape", [(48, 256), (3, 8, 128)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_values_have_the_bits_of_the_definition(level: str, dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    with at_level(level):
        for bits, group in ALL:
            w = Weight(rng, *shape, bits=bits, group=group, dtype=dtype)
            found = dequantize(*w.parts, **w.layout)
            assert found.dtype == mx.float32 and mx.array_equal(found, values(*w.parts, group, bits))
            assert mx.array_equal(found, Coded(unpack(w.parts[0], bits), *w.parts[1:], bits, group).dense())


def test_the_definition_is_the_formula() -> None:
    rng = np.random.default_rng(8)
    w = Weight(rng, 6, 96, bits=5, group=32, dtype="float32")
    x = numbers(rng, 4, 96)
    np.testing.assert_allclose(np.array(values(*w.parts, 32, 5)), w.dense, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.array(reference(x, *w.parts, **w.layout)), exact(x) @ w.dense.T, rtol=1e-4, atol=1e-4)


def test_codes_have_no_derivative() -> None:
    w = Weight(np.random.default_rng(9), 6, 64, bits=4, group=64, dtype="float32")
    codes, scales, biases = w.parts
    with pytest.raises(ValueError, match="no derivative by its weights"):
        mx.grad(lambda s: quantized_matmul(mx.ones((2, 64)), codes, s, biases, **w.layout).sum())(scales)


@pytest.mark.parametrize("change", ["x", "scales", "group"])
def test_parts_that_do_not_belong_together_are_refused(change: str) -> None:
    w = Weight(np.random.default_rng(10), 6, 128, bits=4, group=64, dtype="float32")
    codes, scales, biases = w.parts
    x = mx.ones((2, 96 if change == "x" else 128))
    scales = scales[:, :1] if change == "scales" else scales
    with pytest.raises(ValueError, match="fit|belong|group_size"):
        quantized_matmul(x, codes, scales, biases, bits=4, group_size=16 if change == "group" else 64)
