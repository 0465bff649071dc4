"""Distributions over tokens on the host, and the rule that lets a draft be checked without changing what is drawn.

Data in: weights that a `Sampler` has adjusted and filtered. Data out: probabilities, draws. Knows no logits and no settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 512  # weights that are summed before a place among them is looked for


@dataclass(frozen=True)
class Distribution:
    """The probabilities with which a row's next token is drawn.

    Args:
        p: [K] or [V] float64, none below 0, their sum 1.
        ids: [K] the tokens that they belong to; None where each token stands at its own place.
    """

    p: NDArray[np.float64]
    ids: NDArray[np.int64] | None = None

    @classmethod
    def certain(cls, token: int) -> Distribution:
        """One token and no other."""
        return cls(np.ones(1), np.array([token]))

    @classmethod
    def shares(cls, weights: NDArray[np.floating[Any]], ids: NDArray[np.int64] | None = None) -> Distribution:
        """Probabilities in proportion to weights, of which at least one is above 0."""
        return cls(weights / weights.sum(dtype=np.float64), ids)

    def probability(self, token: int) -> float:
        """Of one token."""
        return float(self._at(np.array([token]))[0])

    def dense(self, width: int) -> NDArray[np.float64]:
        """The probabilities of all tokens, [V]."""
        found = np.zeros(width)
        found[slice(len(self.p)) if self.ids is None else self.ids] = self.p
        return found

    def draw(self, u: float) -> int:
        """A token.

        Args:
            u: from 0 up to and without 1.
        """
        place = pick(self.p, u)
        return place if self.ids is None else int(self.ids[place])

    def beyond(self, other: Distribution) -> Distribution | None:
        """The share of max(0, p - q), or None where nothing is left."""
        tokens = np.arange(len(self.p)) if self.ids is None else self.ids
        rest = np.maximum(self.p - other._at(tokens), 0)
        return Distribution.shares(rest, self.ids) if rest.any() else None

    def _at(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """The probabilities of some tokens."""
        if self.ids is None:
            return self.p[tokens]
        order = np.argsort(self.ids)
        found = order[np.minimum(np.searchsorted(self.ids, tokens, sorter=order), len(order) - 1)]
        return np.where(self.ids[found] == tokens, self.p[found], 0.0)


def pick(weights: NDArray[np.floating[Any]], u: float) -> int:
    """The place of the first weight whose running sum passes the share u of the sum of all.

    Args:
        weights: [N], none below 0, at least one above.
        u: from 0 up to and without 1.
    """
    starts = np.arange(0, len(weights), BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))  # of blocks: most weights are read once
    aim = u * sums[-1]
    block = min(int(np.searchsorted(sums, aim, side="right")), int(np.searchsorted(sums, sums[-1])))
    start = int(starts[block])
    inside = np.cumsum(weights[start : start + BLOCK], dtype=np.float64)
    aim -= sums[block - 1] if block else 0.0
    # Rounding may put the aim at the block's very end: then it is the last weight above 0 there.
    return start + min(int(np.searchsorted(inside, aim, side="right")), int(np.searchsorted(inside, inside[-1])))


def verify(target: Distribution, draft: Distribution, token: int, accept: float, redraw: float) -> tuple[int, bool]:
    """Keep a drafted token with probability min(1, p / q), else draw from the share of max(0, p - q): in all, p.

    Args:
        target: p, what the row draws from.
        draft: q, what the token was drawn from; `Distribution.certain(token)` for one that was not drawn.
        token: the draft.
        accept: uniform in [0, 1), independent of the draft.
        redraw: uniform in [0, 1), independent of both.

    Returns:
        The token that is drawn, and whether it is the draft.

    Source: Leviathan et al. 2023, arXiv 2211.17192, algorithm 1.
    """
    if accept * draft.probability(token) < target.probability(token):
        return token, True
    rest = target.beyond(draft)
    return (target if rest is None else rest).draw(redraw), False
