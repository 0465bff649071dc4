"""Root-mean-square normalisation against float64, at every instruction level."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import floats
from optiq.kernels import norm

pytestmark = pytest.mark.skipif(not floats.levels(), reason="no native kernels here")
EPS = 1e-6


def normed(x, weight=None, eps=EPS):  # type: ignore[no-untyped-def]
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y if weight is None else y * weight


def silu(x):  # type: ignore[no-untyped-def]
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("name", floats.levels())
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.sampled_from([1, 3, 16, 17, 31, 64, 96, 250, 1024]),
    dtype=st.sampled_from(floats.TYPES),
    layout=st.sampled_from(floats.LAYOUTS),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values(name: str, rows: int, width: int, dtype: mx.Dtype, layout: str, weighted: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = floats.array(rng.standard_normal((2, 3, rows, width)) * 10 ** rng.uniform(-2, 2), dtype, layout)
    weight = floats.array(rng.uniform(0.5, 2, width), dtype) if weighted else None
    w = None if weight is None else floats.wide(weight)
    with floats.level(name):
        floats.assert_near(norm.rms_norm(x, weight, EPS), normed(floats.wide(x), w))
        residual = floats.array(rng.standard_normal(x.shape), dtype)
        total, y = norm.add_rms_norm(x, residual, weight, EPS)
        floats.assert_near(total, floats.wide(x) + floats.wide(residual))
        floats.assert_near(y, normed(floats.wide(total), w))
        if weight is not None:
            gate = floats.array(rng.standard_normal(x.shape) * 3, dtype, layout)
            expected = silu(floats.wide(gate)) * normed(floats.wide(x), w)
            floats.assert_near(norm.gated_rms_norm(x, gate, weight, EPS), expected)


@pytest.mark.parametrize("name", floats.levels())
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.sampled_from([1, 5, 16, 33, 48]),
    dtype=st.sampled_from(floats.TYPES),
    layout=st.sampled_from(floats.LAYOUTS),
    seed=st.integers(0, 99),
)
def test_derivatives(name: str, rows: int, width: int, dtype: mx.Dtype, layout: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, gate = (floats.array(rng.standard_normal((1, rows, width)), dtype, layout) for _ in range(2))
    weight = floats.array(rng.uniform(0.5, 2, width), dtype)
    g = floats.wide(floats.array(rng.standard_normal(x.shape), dtype))
    scale = float(np.abs(g).max() * 2 / np.sqrt((floats.wide(x) ** 2).mean(-1)).min())  # of the two terms whose difference dx is
    with floats.level(name):
        found = floats.gradients(lambda x, w: norm.rms_norm(x, w, EPS), (x, weight), g)
        expected = floats.difference(normed, (floats.wide(x), floats.wide(weight)), g)
        for f, e in zip(found, expected, strict=True):
            floats.assert_near(f, e, 12, scale)
        (found,) = floats.gradients(lambda x: norm.rms_norm(x, weight, EPS), (x,), g)
        floats.assert_near(found, expected[0], 12, scale)
        (found,) = floats.gradients(lambda x: norm.rms_norm(x, None, EPS), (x,), g)
        floats.assert_near(found, floats.difference(normed, (floats.wide(x),), g)[0], 12, scale)
        found = floats.gradients(lambda x, z, w: norm.gated_rms_norm(x, z, w, EPS), (x, gate, weight), g)
        expected = floats.difference(lambda x, z, w: silu(z) * normed(x, w), tuple(map(floats.wide, (x, gate, weight))), g)
        for f, e in zip(found, expected, strict=True):
            floats.assert_near(f, e, 16, scale)


def test_derivative_of_the_sum_and_its_norm() -> None:
    rng = np.random.default_rng(0)
    x, residual, g, more = (floats.array(rng.standard_normal((3, 20))) for _ in range(4))
    weight = floats.array(rng.uniform(0.5, 2, 20))

    def loss(form):  # type: ignore[no-untyped-def]
        def f(x, residual, weight):  # type: ignore[no-untyped-def]
            total, y = form(x, residual, weight, EPS)
            return (total * more).sum() + (y * g).sum()

        return mx.grad(f, argnums=(0, 1, 2))(x, residual, weight)

    for found, expected in zip(loss(norm.add_rms_norm), loss(norm.add_rms_norm_reference), strict=True):
        floats.assert_near(found, floats.wide(expected), 16)


def test_sixteen_bit_rounding_is_that_of_mlx() -> None:
    rng = np.random.default_rng(1)
    for dtype in (mx.bfloat16, mx.float16):
        x, weight = floats.array(rng.standard_normal((64, 256)), dtype), floats.array(rng.uniform(0.5, 2, 256), dtype)
        same = norm.rms_norm(x, weight, EPS) == mx.fast.rms_norm(x, weight, EPS)
        assert same.mean().item() > 0.995  # one row in a few sums its squares to another last digit


def test_types_are_those_of_mlx() -> None:
    x = mx.ones((2, 8), mx.bfloat16)
    assert norm.rms_norm(x, mx.ones(8), EPS).dtype == mx.float32
    assert norm.gated_rms_norm(x, mx.ones((2, 8)), mx.ones(8), EPS).dtype == mx.bfloat16


@pytest.mark.parametrize("name", floats.levels())
def test_a_row_does_not_see_the_others(name: str) -> None:
    rng = np.random.default_rng(2)
    x, gate = (floats.array(rng.standard_normal((300, 100)), mx.bfloat16) for _ in range(2))
    weight = floats.array(rng.uniform(0.5, 2, 100), mx.bfloat16)
    with floats.level(name):
        forms = (lambda r: norm.rms_norm(x[r], weight, EPS), lambda r: norm.gated_rms_norm(x[r], gate[r], weight, EPS))
        for form in forms:
            every = form(slice(None))
            for count in (1, 2, 7, 16):
                assert mx.array_equal(form(slice(5, 5 + count)), every[5 : 5 + count])


def test_threads_change_no_bit() -> None:
    rng = np.random.default_rng(3)
    x, weight = floats.array(rng.standard_normal((2000, 96))), floats.array(rng.uniform(0.5, 2, 96))
    found = []
    for count in (1, 3):
        with floats.threads(count):
            found.append(mx.grad(lambda x, w: (norm.rms_norm(x, w, EPS) ** 2).sum(), argnums=(0, 1))(x, weight))
            mx.eval(found[-1])
    assert all(mx.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        norm.rms_norm(mx.ones((2, 8)), mx.ones(7), EPS)
    with pytest.raises(ValueError, match="differ in shape"):
        norm.add_rms_norm(mx.ones((2, 8)), mx.ones((1, 8)), None, EPS)
