"""The largest of many numbers, and weights without top-k, against plain sorting."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiq.generate import narrow
from optiq.generate.sampling import Sampling


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 100), st.integers(1, 3), st.booleans(), st.integers(0, 1 << 30))
def test_the_largest(width: int, count: int, rows: int, ties: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    x = np.round(2 * x) / 2 if ties else x
    x[:, rng.random(width) < 0.1] = -np.inf
    count = min(count, width)
    values, places = map(np.asarray, narrow.largest(mx.array(x), count))
    np.testing.assert_array_equal(values, -np.sort(-x, axis=-1)[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(x, places, -1), values)
    assert all(len(set(row)) == count for row in places.tolist())


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 30.0])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 0.999999])
def test_top_p_keeps_the_smallest_set(spread: float, share: float) -> None:
    x = (spread * np.random.default_rng(2).standard_normal(5000)).astype(np.float32)
    found = narrow.full_weights(x, Sampling(temperature=0.8, top_p=share))
    weights = np.exp((x - x.max()) / np.float32(0.8))
    inside = found > 0
    np.testing.assert_array_equal(found[inside], weights[inside])
    total = weights.sum(dtype=np.float64)
    assert inside.any() and weights[inside].min() >= weights[~inside].max(initial=0)
    assert weights[inside].sum(dtype=np.float64) >= share * total
    least = weights[inside].min()
    assert weights[weights > least].sum(dtype=np.float64) < share * total  # without the least of them it is too little


def test_few_sizes_of_groups() -> None:
    assert [narrow.kept(k) for k in (1, 20, 32, 33, 100)] == [32, 32, 32, 64, 128]
