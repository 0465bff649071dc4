"""The randomized Hadamard rotation: orthogonal, its own inverse, in blocks where a width is no power of two; it spreads."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from scipy.linalg import hadamard

from optiq.kernels.rotation import block_of, signs, transform

WIDTHS = (8, 64, 80, 96, 128, 256, 384)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_transform_is_the_block_diagonal_hadamard_matrix(width: int) -> None:
    block = block_of(width)
    matrix = np.kron(np.eye(width // block), hadamard(block) / np.sqrt(block))
    x = normal(0, 3, 5, width)
    np.testing.assert_allclose(np.array(transform(mx.array(x))), x @ matrix, atol=2e-5)


@pytest.mark.parametrize("width", WIDTHS)
def test_it_keeps_products_and_undoes_itself(width: int) -> None:
    x, y = mx.array(normal(1, 9, width)), mx.array(normal(2, 9, width))
    np.testing.assert_allclose(np.array(transform(transform(x))), np.array(x), atol=2e-6)
    found = (transform(x) * transform(y)).sum(-1)
    np.testing.assert_allclose(np.array(found), np.array((x * y).sum(-1)), atol=1e-4)


def test_blocks_are_the_largest_power_of_two_that_divides() -> None:
    assert [block_of(width) for width in (64, 80, 96, 128, 192, 256, 8)] == [64, 16, 32, 128, 64, 256, 8]


def test_signs_are_the_same_for_a_seed_everywhere() -> None:
    assert signs(8, 0).tolist() == [1, 1, 1, -1, -1, -1, -1, -1]
    assert signs(128, 3).tolist() == signs(128, 3).tolist() != signs(128, 4).tolist()
    assert set(np.array(signs(256, 5))) == {-1.0, 1.0}


def test_a_few_large_channels_are_spread_over_all() -> None:
    x = normal(6, 64, 128)
    x[:, [3, 40, 41, 99]] *= 20
    y = np.array(transform(mx.array(x) * signs(128, 0)))
    before, after = (np.abs(z).max(-1) / np.sqrt((z**2).mean(-1)) for z in (x, y))
    assert np.median(before) > 5 and np.median(after) < 4
