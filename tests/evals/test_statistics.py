"""Intervals and tests against published figures and scipy, and what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from optiq.evals import statistics as s

outcomes = st.lists(st.booleans(), min_size=1, max_size=60)


@given(outcomes)
def test_wilson_is_scipys(correct: list[bool]) -> None:
    score = s.wilson(correct)
    theirs = stats.binomtest(sum(correct), len(correct)).proportion_ci(method="wilson")
    assert (score.low, score.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert score.low <= score.value <= score.high


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial(gained: int, lost: int) -> None:
    theirs = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert s.mcnemar(gained, lost) == pytest.approx(theirs, rel=1e-9)


def test_mcnemar_of_many_pairs() -> None:
    assert s.mcnemar(1100, 900) == pytest.approx(stats.binomtest(1100, 2000).pvalue, rel=1e-6)


def test_a_mean_of_one_task_is_that_task_and_of_equal_ones_is_narrower() -> None:
    score = s.wilson([True] * 30 + [False] * 10)
    alone, many = s.capability([score]), s.capability([score] * 4)
    assert (alone.value, alone.low, alone.high) == pytest.approx((score.value, score.low, score.high))
    assert many.value == pytest.approx(0.75) and many.high - many.low == pytest.approx((score.high - score.low) / 2)


def test_the_interval_of_the_mean_covers_the_truth() -> None:
    rng, truth, covered = np.random.default_rng(1), (0.1, 0.5, 0.9), 0
    for _ in range(400):
        score = s.capability([s.wilson(list(rng.random(40) < p)) for p in truth])
        covered += score.low <= 0.5 <= score.high
    assert 0.92 <= covered / 400 <= 0.99


def test_a_difference_is_shown_only_where_the_test_shows_one() -> None:
    base = {str(n): n % 2 == 0 for n in range(100)}
    few = base | {"1": True, "3": True, "0": False}
    many = base | {str(n): True for n in range(1, 21, 2)}
    same, better, worse = s.compare(few, base), s.compare(many, base), s.compare(base, many)
    assert (same.word, better.word, worse.word) == ("no difference shown", "better", "worse")
    assert (same.gained, same.lost, same.difference) == (("1", "3"), ("0",), pytest.approx(0.01))
    assert better.low > 0 > worse.high and better.p == worse.p < 0.01
    mean = s.compare_means([few, many], [base, base])
    assert mean.difference == pytest.approx((0.01 + 0.10) / 2) and len(mean.gained) == 12


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_the_interval_of_a_difference_holds_it_and_equal_models_differ_by_nothing(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = ({str(n): pair[side] for n, pair in enumerate(pairs)} for side in (0, 1))
    found = s.compare(ours, theirs)
    assert found.low <= found.difference + 1e-9 and found.high >= found.difference - 1e-9
    equal = s.compare(ours, ours)
    assert (equal.difference, equal.low, equal.high, equal.p, equal.shown) == (0, 0, 0, 1.0, False)
