"""Dense products against NumPy in float64: values, derivatives, odd shapes, strides, types, determinism, experts."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_levels import at_level, each_level, needs_native
from optiq.kernels.dense import dense, gather_mm, gather_reference, reference

pytestmark = needs_native

TYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
# What a result may differ by: of sum |x| |w| (native/kernels/gemm.h; sums in float32) and of |y| (rounded to the type).
OF_SUM = {"float32": 2e-6, "bfloat16": 2e-6, "float16": 2**-15 + 2e-6}
OF_RESULT = {"float32": 2**-23, "bfloat16": 2**-8, "float16": 2**-10}
LEAST = {"float32": 1e-30, "bfloat16": 1e-30, "float16": 2**-24}  # float16 has subnormal numbers that one meets


def numbers(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(TYPES[dtype])


def exact(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32), dtype=np.float64)


def assert_product(found: mx.array, x: np.ndarray, w: np.ndarray, dtype: str, context: str = "") -> None:
    """found = x w within the stated bound, for float64 matrices."""
    expected = x @ w
    bound = OF_SUM[dtype] * (np.abs(x) @ np.abs(w)) + OF_RESULT[dtype] * np.abs(expected) + LEAST[dtype]
    assert found.shape == expected.shape and str(found.dtype).endswith(dtype)
    worst = (np.abs(exact(found) - expected) / bound).max(initial=0)
    assert worst <= 1, f"{worst:.3g} times the bound {context}"


@each_level
@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([1, 2, 3, 7, 16, 17, 31, 32, 33, 48, 61, 130]),
    inner=st.integers(1, 700),
    outer=st.sampled_from([1, 5, 15, 16, 17, 33, 96, 97, 128, 129, 200]),
    seed=st.integers(0, 1000),
)
def test_values_and_derivatives(level: str, dtype: str, rows: int, inner: int, outer: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w, dy = (numbers(rng, *shape, dtype=dtype) for shape in ((rows, inner), (outer, inner), (rows, outer)))
    with at_level(level):
        y = dense(x, w)
        _, (dx, dw) = mx.vjp(dense, [x, w], [dy])
        mx.eval(y, dx, dw)
    context = f"{rows}x{inner}x{outer}"
    assert_product(y, exact(x), exact(w).T, dtype, f"y {context}")
    assert_product(dx, exact(dy), exact(w), dtype, f"dx {context}")
    assert_product(dw, exact(dy).T, exact(x), dtype, f"dw {context}")


@each_level
@pytest.mark.parametrize("rows", [3, 40])
def test_any_layout_and_leading_axes(level: str, rows: int) -> None:
    rng = np.random.default_rng(0)
    x = numbers(rng, 2, 130, rows)[:, ::2].swapaxes(1, 2)
    w = numbers(rng, 65, 70)[:, 3:].T
    with at_level(level):
        y = dense(x[..., :65], w)
        mx.eval(y)
    assert y.shape == (2, rows, 67)
    for found, part in zip(y, x, strict=True):
        assert_product(found, exact(part), exact(w).T, "float32")


@each_level
def test_more_rows_than_are_packed_at_once(level: str) -> None:
    rng = np.random.default_rng(1)
    x, w = numbers(rng, 4096 + 37, 20), numbers(rng, 18, 20)
    with at_level(level):
        y, dw = dense(x, w), mx.grad(lambda w: dense(x, w).sum())(w)
        mx.eval(y, dw)
    assert_product(y, exact(x), exact(w).T, "float32")
    assert_product(dw, np.ones((18, len(x))), exact(x), "float32")


@pytest.mark.parametrize(("shape", "outer"), [((0, 5), 3), ((2, 0), 3), ((20, 0), 3), ((0, 2, 5), 3)])
def test_empty_factors(shape: tuple[int, ...], outer: int) -> None:
    y = dense(mx.ones(shape), mx.ones((outer, shape[-1])))
    assert y.shape == (*shape[:-1], outer) and np.array_equal(np.array(y), np.zeros(y.shape))


def test_mixed_types_give_the_wider_one_and_derivatives_in_their_own() -> None:
    rng = np.random.default_rng(2)
    x, w = numbers(rng, 30, 40), numbers(rng, 9, 40, dtype="bfloat16")
    assert_product(dense(x, w), exact(x), exact(w).T, "float32")
    dx, dw = mx.grad(lambda x, w: dense(x, w).sum(), argnums=(0, 1))(x, w)
    assert dx.dtype == mx.float32 and dw.dtype == mx.bfloat16


def test_derivatives_of_derivatives() -> None:
    rng = np.random.default_rng(3)
    x, w = numbers(rng, 20, 6), numbers(rng, 5, 6)

    def twice(form):  # type: ignore[no-untyped-def]
        inner = mx.grad(lambda x, w: (form(x, w) ** 3).sum(), argnums=(0, 1))
        return mx.grad(lambda x, w: sum((g**2).sum() for g in inner(x, w)), argnums=(0, 1))(x, w)

    for found, expected in zip(twice(dense), twice(reference), strict=True):
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-3, atol=1e-2)


@each_level
@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_of_every_size(level: str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    scale = np.float32(10) ** rng.integers(-4, 4, (40, 90)).astype(np.float32)
    x = (numbers(rng, 40, 90) * mx.array(scale)).astype(TYPES[dtype])
    w = numbers(rng, 50, 90, dtype=dtype)
    with at_level(level):
        y = dense(x, w)
        mx.eval(y)
    assert_product(y, exact(x), exact(w).T, dtype)


@each_level
@pytest.mark.parametrize("dtype", TYPES)
def test_rows_do_not_see_each_other_and_every_run_is_the_same(level: str, dtype: str) -> None:
    rng = np.random.default_rng(5)
    w = numbers(rng, 70, 530, dtype=dtype)
    for most in (16, 150):  # up to 16 rows, and beyond
        x = numbers(rng, most, 530, dtype=dtype)
        with at_level(level):
            whole = dense(x, w)
            counts = (1, 2, 3, 5, 8, 13, 16) if most == 16 else (17, 40, 131)
            parts = [dense(x[most - n :], w) for n in counts]
            mx.eval(whole, parts)
            for n, part in zip(counts, parts, strict=True):
                assert mx.array_equal(whole[most - n :], part)
            assert mx.array_equal(whole, dense(x, w))


@each_level
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("lead", "cells", "rows"),
    [((6, 1), (6, 2), 1), ((40, 1), (40, 3), 1), ((24,), (24,), 1), ((3,), (3,), 30), ((1,), (5,), 2), ((2, 9, 1), (2, 9, 2), 1)],
)
def test_experts(level: str, dtype: str, lead: tuple[int, ...], cells: tuple[int, ...], rows: int) -> None:
    rng = np.random.default_rng(6)
    x, w = numbers(rng, *lead, rows, 37, dtype=dtype), numbers(rng, 4, 21, 37, dtype=dtype)
    indices = mx.array(rng.integers(0, 3, cells).astype(np.uint32))  # the fourth expert is never asked
    dy = numbers(rng, *cells, rows, 21, dtype=dtype)
    with at_level(level):
        y = gather_mm(x, w, indices)
        _, (dx,) = mx.vjp(lambda x: gather_mm(x, w, indices), [x], [dy])
        mx.eval(y, dx)
    wide = [a.astype(mx.float32) for a in (x, w)]
    _, (expected,) = mx.vjp(lambda x: gather_reference(x, wide[1], indices), [wide[0]], [dy.astype(mx.float32)])
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}[dtype]
    assert y.shape == (*cells, rows, 21) and y.dtype == TYPES[dtype]
    np.testing.assert_allclose(exact(y), exact(gather_reference(*wide, indices)), rtol=tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(exact(dx), exact(expected), rtol=tolerance, atol=10 * tolerance)


def test_the_weights_of_experts_have_no_derivative() -> None:
    x, w = mx.ones((3, 1, 4)), mx.ones((2, 5, 4))
    with pytest.raises(ValueError, match="gather_mm has no derivative by its weights"):
        mx.grad(lambda w: gather_mm(x, w, mx.zeros(3, mx.int32)).sum())(w)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        dense(mx.ones((3, 4)), mx.ones((5, 6)))
