"""Percentile bootstrap: how far a mean could have come out otherwise. Pure numbers with a fixed seed; knows no models.

    interval        of a mean over strata of the means of values, each stratum resampled by itself
    ratio_interval  of mean(ours) / mean(theirs) over pairs

Intervals are of 95 %. Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 6.4 (strata).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
BLOCK = 4_000_000  # picks that are held at once: 32 MB

Values = NDArray[np.generic]


def interval(*strata: Values, resamples: int = RESAMPLES) -> list[float]:
    """The interval of the mean over strata of their means.

    Args:
        strata: independent values each [N], at least one stratum.
        resamples: draws.

    Returns:
        The low and the high end.
    """
    rng = np.random.default_rng(0)
    means = [np.concatenate([values[picks].mean(1) for picks in _picks(rng, len(values), resamples)]) for values in strata]
    return _ends(np.mean(means, axis=0))


def ratio_interval(ours: Values, theirs: Values, resamples: int = RESAMPLES) -> list[float]:
    """The interval of mean(ours) / mean(theirs), rows resampled in pairs.

    Args:
        ours: [N] or [N, L].
        theirs: likewise.
        resamples: draws.

    Returns:
        The low and the high end.
    """
    rng = np.random.default_rng(0)
    a, b = (values.reshape(len(values), -1).mean(1) for values in (ours, theirs))
    return _ends(np.concatenate([a[picks].mean(1) / b[picks].mean(1) for picks in _picks(rng, len(a), resamples)]))


def _picks(rng: np.random.Generator, n: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Which rows each draw takes, in blocks of draws."""
    rows = max(1, BLOCK // n)
    for start in range(0, resamples, rows):
        yield rng.integers(0, n, (min(rows, resamples - start), n))


def _ends(draws: NDArray[np.float64]) -> list[float]:
    return [float(x) for x in np.percentile(draws, [2.5, 97.5])]
