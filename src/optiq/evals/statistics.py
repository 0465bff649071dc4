"""How sure a score is, and whether two scores differ: intervals, paired tests, flips. Pure numbers, knows no tasks.

A score is a share of right answers among N independent samples. Two models answer the same samples and are compared in pairs:
McNemar's exact test on the samples that one answers and the other does not, and a bootstrap over pairs for the size of the
difference (fixed seed, resampled within each task). Intervals are of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optiq.measure.bootstrap import interval

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
ALPHA = 0.05
RESAMPLES = 10_000


@dataclass(frozen=True)
class Score:
    """A share with its interval.

    Args:
        value: from 0 to 1.
        low, high: ends of the 95 % interval.
        samples: how many it is over.
    """

    value: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True)
class Paired:
    """A candidate against a baseline on the same samples.

    Args:
        difference: candidate's share minus the baseline's.
        low, high: ends of its 95 % interval (paired bootstrap).
        p: of McNemar's exact test, two-sided; of the capability score: None.
        gained: samples that only the candidate answers.
        lost: samples that only the baseline answers.
        shown: whether a difference is shown at 5 %.
    """

    difference: float
    low: float
    high: float
    p: float | None
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    shown: bool

    @property
    def word(self) -> str:
        """The finding in words."""
        if not self.shown:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"


def wilson(correct: Sequence[bool]) -> Score:
    """A share with Wilson's score interval.

    centre = (p + z²/2n) / (1 + z²/n),  half = z/(1 + z²/n) · sqrt(p(1 - p)/n + z²/4n²)

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    n = len(correct)
    if n == 0:
        raise ValueError("a share of no samples")
    p = sum(correct) / n
    scale = 1 + Z * Z / n
    centre = (p + Z * Z / (2 * n)) / scale
    half = Z / scale * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return Score(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def capability(scores: Sequence[Score]) -> Score:
    """The unweighted mean of task scores, with an interval from theirs (MOVER).

    low = m - sqrt(sum (p_i - low_i)²) / k,  high = m + sqrt(sum (high_i - p_i)²) / k

    Source: Zou & Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27, 2008.
    """
    k = len(scores)
    if k == 0:
        raise ValueError("a mean of no tasks")
    mean = sum(score.value for score in scores) / k
    below = math.sqrt(sum((score.value - score.low) ** 2 for score in scores)) / k
    above = math.sqrt(sum((score.high - score.value) ** 2 for score in scores)) / k
    return Score(mean, max(0.0, mean - below), min(1.0, mean + above), sum(score.samples for score in scores))


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p of McNemar's exact test: gained among gained + lost under a fair coin.

    Source: McNemar, Psychometrika 12, 1947; exact form: Fagerland, Lydersen & Laake, BMC Medical Research Methodology 13, 2013.
    """
    n, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * math.exp(_log_tail(n, fewer)))


def compare(candidate: Mapping[str, bool], baseline: Mapping[str, bool]) -> Paired:
    """One task of two models, on the samples that both answered."""
    ids = [name for name in candidate if name in baseline]
    gained = tuple(name for name in ids if candidate[name] and not baseline[name])
    lost = tuple(name for name in ids if baseline[name] and not candidate[name])
    if not ids:
        raise ValueError("no sample was answered by both")
    low, high = interval(_differences(candidate, baseline, ids), resamples=RESAMPLES)
    p = mcnemar(len(gained), len(lost))
    return Paired((len(gained) - len(lost)) / len(ids), low, high, p, gained, lost, p < ALPHA)


def compare_means(candidate: Sequence[Mapping[str, bool]], baseline: Sequence[Mapping[str, bool]]) -> Paired:
    """The unweighted means over tasks of two models; a difference is shown where its interval leaves out zero."""
    per_task, gained, lost = [], [], []
    for ours, theirs in zip(candidate, baseline, strict=True):
        ids = [name for name in ours if name in theirs]
        if not ids:
            raise ValueError("no sample of a task was answered by both")
        per_task.append(_differences(ours, theirs, ids))
        gained += [name for name in ids if ours[name] and not theirs[name]]
        lost += [name for name in ids if theirs[name] and not ours[name]]
    low, high = interval(*per_task, resamples=RESAMPLES)
    mean = float(np.mean([values.mean() for values in per_task]))
    return Paired(mean, low, high, None, tuple(gained), tuple(lost), low > 0 or high < 0)


def _differences(candidate: Mapping[str, bool], baseline: Mapping[str, bool], ids: Sequence[str]) -> np.ndarray:
    return np.array([int(candidate[name]) - int(baseline[name]) for name in ids], np.int8)


def _log_tail(n: int, most: int) -> float:
    """log P(X <= most) of a fair binomial of n, by sums of logarithms."""
    terms = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(most + 1)]
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms))
