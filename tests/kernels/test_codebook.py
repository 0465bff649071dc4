"""Codebooks against their definitions: conditions of the least error, published errors, what integers cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import norm

from optiq.kernels.codebook import BITS, LLOYD_BITS, Codebook, lloyd, lloyd_max, uniform, uniform_error

# J. Max, "Quantizing for minimum distortion", IRE Trans. 6 (1960), table I; the values of TurboQuant, arXiv 2504.19874.
PUBLISHED = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


def error(levels: Sequence[float]) -> float:
    """Mean squared error of N(0, 1) coded to the nearest level, by the trapezoid rule on 2 million points of [-9, 9]."""
    x = np.linspace(-9, 9, 2_000_001)
    exact = np.asarray(levels, np.float64)
    nearest = exact[np.searchsorted((exact[1:] + exact[:-1]) / 2, x)]
    return float(np.trapezoid((x - nearest) ** 2 * norm.pdf(x), x))


def values(book: Codebook) -> list[float]:
    return [level * book.unit for level in book.levels]


@pytest.mark.parametrize("bits", LLOYD_BITS)
def test_lloyd_max_is_the_fixed_point(bits: int) -> None:
    """Each level is the mean of the normal distribution between the midpoints around it; the error is the published one."""
    levels = np.array(lloyd_max(bits))
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    means = -np.diff(norm.pdf(edges)) / np.diff(norm.cdf(edges))
    np.testing.assert_allclose(levels, means, atol=1e-11)
    np.testing.assert_array_equal(levels, -levels[::-1])
    assert error(lloyd_max(bits)) == pytest.approx(PUBLISHED[bits], rel=5e-4)


@pytest.mark.parametrize("bits", LLOYD_BITS)
def test_integer_levels_cost_little(bits: int) -> None:
    assert error(values(lloyd(bits))) <= 1.006 * error(lloyd_max(bits))


@pytest.mark.parametrize("bits", BITS)
def test_uniform_levels_have_the_best_spacing(bits: int) -> None:
    book = uniform(bits)
    steps = set(np.diff(book.levels).tolist())
    assert len(steps) == 1
    spacing = steps.pop() * book.unit
    least = uniform_error(2**bits, spacing)
    if bits < 8:  # at 8 bits levels are all integers, half a step beside the symmetric ones
        assert error(values(book)) == pytest.approx(least, rel=1e-4)
    for other in (0.97, 0.999, 1.001, 1.03):
        assert uniform_error(2**bits, spacing * other) > least


@pytest.mark.parametrize("bits", LLOYD_BITS)
def test_lloyd_max_is_not_worse_than_uniform(bits: int) -> None:
    assert error(lloyd_max(bits)) <= error(values(uniform(bits))) * (1 + 1e-6)


@pytest.mark.parametrize("book", [*map(lloyd, LLOYD_BITS), *map(uniform, BITS)], ids=lambda b: f"{b.bits}, {b.levels[-1]}")
def test_levels_are_rising_bytes_and_bounds_their_midpoints(book: Codebook) -> None:
    assert len(book.levels) == 2**book.bits and len(book.bounds) == 2**book.bits - 1
    assert book.levels == tuple(sorted(set(book.levels))) and book.levels[0] >= -128 and book.levels[-1] <= 127
    for bound, a, b in zip(book.bounds, book.levels, book.levels[1:], strict=False):
        assert bound - a == b - bound
    assert math.isfinite(book.unit) and book.unit > 0


def test_unknown_bits_are_refused() -> None:
    for bits in (0, 5, 8):
        with pytest.raises(ValueError, match=f"codebook of {bits} bits, expected one of"):
            lloyd_max(bits)
    for bits in (0, 7, 16):
        with pytest.raises(ValueError, match=f"codebook of {bits} bits, expected one of"):
            uniform(bits)
