"""Means and scales of keys, queries and values, from vectors whose answer is known."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from optiq.kv.recipe import SINKS
from optiq.kv.statistics import LARGEST_SCALE, Moments, scale
from optiq.models.caches import KeyValueLayer

LAYER = KeyValueLayer(0, 0, 0, False, 4)


def seen(length: int = 4000, key_factor: np.ndarray | None = None) -> tuple[Moments, np.ndarray]:
    """Moments of normal vectors around means, of which channel 0 turns with the position; and the means of the keys."""
    rng = np.random.default_rng(0)
    mean = np.array([3.0, 0, 0, 2, 1, -1, 0, 4])
    k = rng.standard_normal((1, 2, length, 8)) * (1 if key_factor is None else key_factor) + mean
    k[..., 0] += mean[0] * (np.cos(np.arange(length) * 0.01) - 1)
    q = rng.standard_normal((1, 4, length, 8)) * np.array([1.0, 1, 1, 1, 2, 2, 4, 4])
    v = rng.standard_normal((1, 2, length, 8)) + 0.5
    k[:, :, :SINKS] = 1e3  # what stays in full precision does not count
    moments = Moments()
    moments.see(mx.array(q, mx.float32), mx.array(k, mx.float32), mx.array(v, mx.float32))
    return moments, mean


def test_means_are_found_where_they_hold() -> None:
    moments, mean = seen()
    found = moments.statistics(LAYER)
    expected = np.where(np.arange(8) == 0, 0.0, mean)
    assert found.key_mean is not None and found.value_mean is not None
    got = np.array(found.key_mean)
    np.testing.assert_allclose(got[:, [0, 3, 4, 5, 7]], np.tile(expected[[0, 3, 4, 5, 7]], (2, 1)), atol=0.1)
    np.testing.assert_allclose(np.array(found.value_mean), 0.5, atol=0.1)
    assert moments.shape == (2, 8, 8)


def test_scales_weigh_keys_against_queries() -> None:
    factor = np.array([1.0, 1, 1, 1, 1, 1, 1, 8])
    moments, _ = seen(key_factor=factor)
    t = np.array(moments.statistics(KeyValueLayer(0, 0, 0, False, 0)).key_scale)[:, 4:]
    expected = (factor**2 / np.array([1.0, 1, 1, 1, 4, 4, 16, 16]))[4:] ** 0.25
    np.testing.assert_allclose(t / t[:, :1], np.tile(expected / expected[0], (2, 1)), rtol=0.05)


@pytest.mark.parametrize(("interleaved", "pairs"), [(False, [(0, 2), (1, 3)]), (True, [(0, 1), (2, 3)])])
def test_rotary_pairs_share_a_scale(interleaved: bool, pairs: list[tuple[int, int]]) -> None:
    moments, _ = seen(key_factor=np.array([1.0, 2, 3, 4, 1, 1, 1, 1]))
    t = np.array(moments.statistics(KeyValueLayer(0, 0, 0, False, 4, interleaved)).key_scale)
    for a, b in pairs:
        np.testing.assert_array_equal(t[:, a], t[:, b])
    assert abs(np.log(t).mean()) < 1e-5


def test_the_scale_is_the_best_one_and_bounded() -> None:
    rng = np.random.default_rng(0)
    variance, query = rng.uniform(0.5, 2, (1, 8)), rng.uniform(0.5, 2, (1, 8))
    t = scale(variance, query)

    def error(t: np.ndarray) -> float:
        return float((query * t**2).sum() * (variance / t**2).sum())

    assert all(error(t) <= error(t * rng.uniform(0.9, 1.1, t.shape)) for _ in range(100))
    wild = scale(np.array([[1e9, 1.0, 0.0, 1.0]]), np.ones((1, 4)))
    assert np.isfinite(wild).all() and wild.max() <= LARGEST_SCALE and wild.min() >= 1 / LARGEST_SCALE
