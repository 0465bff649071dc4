"""Picking a place by a share, and the rejection rule: what comes out follows the target, whatever the draft is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq.generate.distribution import BLOCK, Distribution, pick, verify

TARGET = Distribution(np.array([0.5, 0.2, 0.2, 0.1]), np.array([7, 2, 9, 4]))
DENSE = Distribution(TARGET.dense(12))


@given(st.integers(1, 3 * BLOCK), st.floats(0, 1, exclude_max=True), st.integers(0, 1 << 30))
def test_a_place_by_its_share(count: int, u: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random(count) < 0.5, 0, rng.random(count)).astype(np.float32)
    weights[rng.integers(count)] = 1
    place = pick(weights, u)
    sums = np.cumsum(weights, dtype=np.float64)
    assert weights[place] > 0
    assert sums[place] - weights[place] <= u * sums[-1] + 1e-9 and u * sums[-1] <= sums[place] + 1e-9


def test_the_ends_of_the_range() -> None:
    weights = np.zeros(2 * BLOCK)
    weights[[3, BLOCK - 1]] = 0.1, 0.3
    assert pick(weights, 0.0) == 3 and pick(weights, np.nextafter(1, 0)) == BLOCK - 1


@pytest.mark.parametrize("target", [TARGET, DENSE])
def test_probabilities(target: Distribution) -> None:
    assert [target.probability(token) for token in (7, 2, 3)] == pytest.approx([0.5, 0.2, 0])
    assert target.dense(12).sum() == pytest.approx(1)
    rest = target.beyond(Distribution.certain(7))
    assert rest is not None and rest.dense(12)[[7, 2, 9, 4]] == pytest.approx([0, 0.4, 0.4, 0.2])
    assert target.beyond(target) is None
    assert Distribution.shares(np.array([1, 3]), np.array([5, 6])).probability(6) == 0.75


@pytest.mark.parametrize("target", [TARGET, DENSE])
@pytest.mark.parametrize(
    "draft",
    [
        Distribution(np.array([0.1, 0.6, 0.3]), np.array([7, 2, 11])),
        Distribution(np.full(12, 1 / 12)),
        Distribution.certain(2),
        Distribution.certain(11),
        TARGET,
    ],
)
def test_what_is_verified_follows_the_target(target: Distribution, draft: Distribution) -> None:
    rng, count, kept = np.random.default_rng(3), 4000, 0
    found = np.zeros(12)
    for drawn, accept, redraw in rng.random((count, 3)):
        token = draft.draw(drawn)
        out, same = verify(target, draft, token, accept, redraw)
        assert out == token or not same
        found[out] += 1
        kept += same
    # Four standard deviations of a share of one half over 4000 draws are 0.032.
    assert np.abs(found / count - target.dense(12)).max() < 0.032
    assert abs(kept / count - np.minimum(target.dense(12), draft.dense(12)).sum()) < 0.032
