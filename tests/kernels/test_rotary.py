"""Rotary position embedding against float64, at every instruction level."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import floats
from optiq.kernels.rotary import rope

pytestmark = pytest.mark.skipif(not floats.levels(), reason="no native kernels here")


def rotated(x: np.ndarray, angles: np.ndarray, dims: int, traditional: bool) -> np.ndarray:
    """`angles` [B, L, dims / 2]."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    y = x.copy()
    first, second = (
        (np.s_[..., 0:dims:2], np.s_[..., 1:dims:2]) if traditional else (np.s_[..., : dims // 2], np.s_[..., dims // 2 : dims])
    )
    y[first] = x[first] * cos - x[second] * sin
    y[second] = x[first] * sin + x[second] * cos
    return y


def angles(offsets: np.ndarray, length: int, inverse: np.ndarray, scale: float) -> np.ndarray:
    """In float32, as MLX makes them; [B, L, dims / 2]."""
    positions = (np.arange(length, dtype=np.float32) + offsets[:, None].astype(np.float32)) * np.float32(scale)
    return (positions[..., None] * inverse.astype(np.float32)).astype(np.float64)


@pytest.mark.parametrize("name", floats.levels())
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    length=st.integers(1, 20),
    sizes=st.sampled_from([(2, 2), (8, 8), (16, 64), (64, 64), (30, 33), (128, 128), (80, 96)]),
    traditional=st.booleans(),
    layout=st.sampled_from(floats.LAYOUTS),
    dtype=st.sampled_from(floats.TYPES),
    offset=st.sampled_from(["zero", "int", "scalar", "each"]),
    scale=st.sampled_from([1.0, 0.25]),
    from_base=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_derivative(
    name: str,
    batch: int,
    heads: int,
    length: int,
    sizes: tuple[int, int],
    traditional: bool,
    layout: str,
    dtype: mx.Dtype,
    offset: str,
    scale: float,
    from_base: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    dims, width = sizes
    x = floats.array(rng.standard_normal((batch, heads, length, width)), dtype, layout)
    starts = {"zero": np.zeros(batch), "each": rng.integers(0, 9000, batch)}.get(offset, np.full(batch, rng.integers(0, 9000)))
    given = {"zero": 0, "int": int(starts[0]), "scalar": mx.array(int(starts[0])), "each": mx.array(starts.astype(np.int32))}[
        offset
    ]
    wavelengths = (1e4 ** (np.arange(dims // 2) * 2 / dims)).astype(np.float32)
    options = {"base": 1e4} if from_base else {"freqs": mx.array(wavelengths)}
    inverse = np.exp(-np.log(1e4) * np.arange(dims // 2) * 2 / dims) if from_base else np.float32(1) / wavelengths
    turned = angles(starts, length, inverse, scale)

    def form(x: mx.array) -> mx.array:
        return rope(x, dims, traditional=traditional, scale=scale, offset=given, **options)

    with floats.level(name):
        floats.assert_near(form(x), rotated(floats.wide(x), turned, dims, traditional), 6)
        g = floats.wide(floats.array(rng.standard_normal(x.shape), dtype))
        (found,) = floats.gradients(form, (x,), g)
        floats.assert_near(found, rotated(g, -turned, dims, traditional), 6)


@pytest.mark.parametrize("name", floats.levels())
def test_far_positions(name: str) -> None:
    """Sine and cosine stay exact where the angle is large: 1 as a pair's only value shows both."""
    x = mx.array(np.tile(np.float32([1, 0]), (1, 1, 64, 1)))
    with floats.level(name):
        for start in (0, 4_000, 262_000, 1_000_000):
            found = floats.wide(rope(x, 2, base=1e4, offset=start))[0, 0]
            angle = np.arange(start, start + 64).astype(np.float64)
            assert np.abs(found - np.stack([np.cos(angle), np.sin(angle)], -1)).max() < 2e-7


def test_agrees_with_mlx() -> None:
    rng = np.random.default_rng(3)
    for shape in ((2, 5, 32), (2, 3, 5, 32), (2, 3, 2, 5, 32)):
        x = floats.array(rng.standard_normal(shape))
        for offset in (7, mx.array(7), mx.array([3, 4000])):
            options = {"traditional": False, "base": 1e6, "scale": 1.0, "offset": offset}
            expected = mx.fast.rope(x, 16, **options)
            assert (
                mx.abs(rope(x, 16, **options) - expected).max().item() < 5e-3
            )  # 4000 times its frequencies' error of 3e-7, for each value


@pytest.mark.parametrize("name", floats.levels())
def test_a_row_does_not_see_the_others(name: str) -> None:
    x = floats.array(np.random.default_rng(4).standard_normal((2, 3, 300, 64)), mx.bfloat16)
    with floats.level(name):
        every = rope(x, 32, base=1e6)
        for count in (1, 2, 16):
            assert mx.array_equal(rope(x[1:, :, 40 : 40 + count], 32, base=1e6, offset=40), every[1:, :, 40 : 40 + count])


def test_wrong_arguments_are_refused() -> None:
    x = mx.ones((1, 1, 4, 8))
    for options in ({}, {"base": 1e4, "freqs": mx.ones(4)}, {"base": 1e4, "offset": mx.array([1, 2])}, {"freqs": mx.ones(3)}):
        with pytest.raises(ValueError):
            rope(x, 8, **options)
    with pytest.raises(ValueError):
        rope(x, 7, base=1e4)
