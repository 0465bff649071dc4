"""Activations and gated products against float64, at every instruction level."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import floats
from optiq.kernels import gates

pytestmark = pytest.mark.skipif(not floats.levels(), reason="no native kernels here")


def sigmoid(x):  # type: ignore[no-untyped-def]
    return 1 / (1 + np.exp(-x))


def gelu(x):  # type: ignore[no-untyped-def]
    return x * sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


ONE = {"silu": lambda x: x * sigmoid(x), "gelu": gelu}
TWO = {
    "swiglu": lambda a, u: a * sigmoid(a) * u,
    "geglu": lambda a, u: gelu(a) * u,
    "sigmoid_gate": lambda x, a: x * sigmoid(a),
}


@pytest.mark.parametrize("name", floats.levels())
@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(1,), (5,), (16,), (3, 37), (2, 3, 64), (2, 5, 4, 33), (3, 5000)]),
    dtype=st.sampled_from(floats.TYPES),
    layouts=st.tuples(*[st.sampled_from(floats.LAYOUTS)] * 2),
    seed=st.integers(0, 99),
)
def test_values_and_derivatives(name: str, shape: tuple[int, ...], dtype: mx.Dtype, layouts: tuple[str, str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (floats.array(rng.standard_normal(shape) * 4, dtype, layout) for layout in layouts)
    a, u = floats.wide(first), floats.wide(second)
    g = floats.wide(floats.array(rng.standard_normal(shape), dtype))
    with floats.level(name):
        for key, form in ONE.items():
            floats.assert_near(getattr(gates, key)(first), form(a), scale=1e-3)  # GELU's tail is small and a long way from 1
            (found,) = floats.gradients(getattr(gates, key), (first,), g)
            floats.assert_near(found, g * np.imag(form(a + 1e-30j)) / 1e-30, 8, np.abs(g).max())
        for key, form in TWO.items():
            floats.assert_near(getattr(gates, key)(first, second), form(a, u), scale=1e-3)
            found = floats.gradients(getattr(gates, key), (first, second), g)
            scale = np.abs(g).max() * max(np.abs(a).max(), np.abs(u).max())  # of the terms that a derivative adds
            floats.assert_near(found[0], g * np.imag(form(a + 1e-30j, u)) / 1e-30, 8, scale)
            floats.assert_near(found[1], g * np.imag(form(a, u + 1e-30j)) / 1e-30, 8, scale)


@pytest.mark.parametrize("key", [*ONE, *TWO])
def test_definitions(key: str) -> None:
    rng = np.random.default_rng(0)
    for dtype in floats.TYPES:
        inputs = [floats.array(rng.standard_normal((7, 50)) * 4, dtype) for _ in range(1 if key in ONE else 2)]
        found = getattr(gates, f"{key}_reference")(*inputs)
        assert found.dtype == dtype
        floats.assert_near(found, ({**ONE, **TWO})[key](*map(floats.wide, inputs)))


def test_far_values_and_nan() -> None:
    x = mx.array([-np.inf, -1e4, -100, -88, -50, 0, 50, 88, 100, 1e4, np.inf, np.nan])
    for found, expected in ((gates.silu(x), nn.silu(x)), (gates.sigmoid_gate(mx.ones_like(x), x), mx.sigmoid(x))):
        assert np.allclose(np.array(found), np.array(expected), rtol=2e-6, atol=1e-36, equal_nan=True)


def test_the_wider_type_wins_and_shapes_are_broadcast() -> None:
    rng = np.random.default_rng(1)
    a, u = floats.array(rng.standard_normal((4, 1, 9)), mx.bfloat16), floats.array(rng.standard_normal((3, 1)))
    found = gates.swiglu(a, u)
    assert found.dtype == mx.float32
    floats.assert_near(found, TWO["swiglu"](floats.wide(a), floats.wide(u)))
    grown = mx.grad(lambda a, u: gates.swiglu(a, u).sum(), argnums=(0, 1))(a, u)
    assert [x.shape for x in grown] == [a.shape, u.shape]


@pytest.mark.parametrize("name", floats.levels())
def test_a_row_does_not_see_the_others(name: str) -> None:
    rng = np.random.default_rng(2)
    with floats.level(name):
        for dtype in floats.TYPES:
            a, u = (floats.array(rng.standard_normal((300, 101)), dtype) for _ in range(2))
            every = gates.swiglu(a, u)
            for count in (1, 2, 7, 16):
                assert mx.array_equal(gates.swiglu(a[5 : 5 + count], u[5 : 5 + count]), every[5 : 5 + count])
