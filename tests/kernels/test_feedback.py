"""Rounding with error feedback: the native form gives the bits of the definition, at every level, layout and width."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import floats
from optiq.kernels import feedback

native_only = pytest.mark.skipif(not floats.levels(), reason="no native kernels here")
shapes = given(
    rows=st.integers(1, 40),
    width=st.sampled_from([1, 7, 16, 32, 64, 100, 128]),
    top=st.sampled_from([3.0, 15.0, 255.0]),
    layout=st.sampled_from(["dense", "slice", "gaps"]),
    seed=st.integers(0, 99),
)


def made(rows: int, width: int, top: float, layout: str, seed: int) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Weights [O, g], scale and bias of each row, a positive definite matrix [g, g]."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, width))
    s, b = (rng.uniform(0.5, 2, rows) * 4 / top), rng.standard_normal(rows) - 2
    x = rng.standard_normal((2 * width, width))
    return floats.array(w, layout=layout), *map(floats.array, (s, b, x.T @ x / width + 0.1 * np.eye(width)))


def same(found: tuple[mx.array, ...], expected: tuple[mx.array, ...]) -> bool:
    return len(found) == len(expected) and all(mx.array_equal(a, b).item() for a, b in zip(found, expected, strict=True))


@native_only
@pytest.mark.parametrize("name", floats.levels())
@settings(max_examples=40, deadline=None)
@shapes
def test_rounding_has_the_bits_of_the_definition(name: str, rows: int, width: int, top: float, layout: str, seed: int) -> None:
    w, s, b, h = made(rows, width, top, layout, seed)
    arguments = (w, s, b, h, 1.0 / mx.diagonal(h), top)
    with floats.level(name):
        assert same(feedback.round_columns(*arguments), feedback.round_columns_reference(*arguments))


@native_only
@pytest.mark.parametrize("name", floats.levels())
@settings(max_examples=40, deadline=None)
@shapes
def test_steps_have_the_bits_of_the_definition(name: str, rows: int, width: int, top: float, layout: str, seed: int) -> None:
    r, s, b, h = made(rows, width, top, layout, seed)
    codes = floats.array(np.random.default_rng(seed).integers(0, int(top) + 1, (rows, width)) * 1.0, layout=layout)
    with floats.level(name):
        assert same(feedback.step_columns(codes, s, r, h, top), feedback.step_columns_reference(codes, s, r, h, top))


def test_what_is_not_finite_stays_so() -> None:
    w = mx.array([[float("inf"), 0.0], [float("nan"), 0.0], [1.0, 0.0]])
    arguments = (w, mx.array([1.0, 1.0, 0.0]), mx.zeros(3), mx.ones((2, 2)), mx.ones(2), 3.0)
    for found, expected in zip(feedback.round_columns(*arguments), feedback.round_columns_reference(*arguments), strict=True):
        np.testing.assert_array_equal(np.array(found), np.array(expected))


@native_only
@pytest.mark.parametrize(
    ("w", "s", "told"),
    [
        (mx.zeros((2, 129)), mx.zeros(2), "w: expected float32 rows of at most 128"),
        (mx.zeros((2, 4), mx.float16), mx.zeros(2), "w: expected float32"),
        (mx.zeros((2, 4)), mx.zeros(3), "s: unexpected shape"),
    ],
)
def test_what_does_not_fit_is_refused(w: mx.array, s: mx.array, told: str) -> None:
    width = w.shape[1]
    with pytest.raises(ValueError, match=told):
        feedback.round_columns(w, s, mx.zeros(2), mx.zeros((width, width)), mx.zeros(width), 3.0)
