"""Bootstrap intervals: as wide as theory says, paired where pairs are, the same however large the blocks are."""

from __future__ import annotations

import numpy as np
import pytest

from optiq.measure import bootstrap
from optiq.measure.bootstrap import interval, ratio_interval


def test_intervals() -> None:
    rows = np.random.default_rng(0).exponential(1.0, 200)
    low, high = interval(rows)
    assert low < rows.mean() < high and high - low == pytest.approx(4 * rows.std() / np.sqrt(200), rel=0.2)
    assert interval(np.full(10, 0.5)) == [0.5, 0.5]


def test_ratios_are_paired() -> None:
    theirs = np.random.default_rng(1).exponential(1.0, (100, 30))
    low, high = ratio_interval(0.5 * theirs, theirs)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5)
    ours = 0.5 * np.random.default_rng(2).permuted(theirs, axis=0)
    low, high = ratio_interval(ours, theirs)
    assert low < 0.5 < high < 0.7


def test_strata_are_resampled_each_by_itself() -> None:
    small, large = np.random.default_rng(3).normal(0.0, 1.0, 50), np.random.default_rng(4).normal(5.0, 1.0, 5000)
    low, high = interval(small, large, resamples=4000)
    assert low < (small.mean() + large.mean()) / 2 < high
    spread = np.hypot(small.std() / np.sqrt(50), large.std() / np.sqrt(5000)) / 2
    assert high - low == pytest.approx(3.92 * spread, rel=0.1)
    assert interval(np.zeros(9), np.ones(90)) == [0.5, 0.5]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(size=40)
    whole = interval(values, values + 1), ratio_interval(values + 9, values + 7)
    monkeypatch.setattr(bootstrap, "BLOCK", 40 * 7)
    assert (interval(values, values + 1), ratio_interval(values + 9, values + 7)) == whole
