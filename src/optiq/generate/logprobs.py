"""Log probabilities as a client reads them: of the token that was drawn, and of the likeliest ones.

They are those of the model itself, at temperature 1, before biases, penalties and filters. Computed on the host, where they are
read. Data in: raw logits. Data out: natural logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from optiq.generate import narrow


@dataclass(frozen=True)
class LogProbabilities:
    """Of one row.

    Args:
        chosen: of the token that was drawn, in nats.
        ids: [n] the likeliest tokens, first the likeliest.
        values: [n] theirs.
    """

    chosen: float
    ids: NDArray[np.int32]
    values: NDArray[np.float64]


def log_probabilities(logits: mx.array, tokens: Sequence[int], tops: Sequence[int]) -> list[LogProbabilities]:
    """Log probabilities of one token per row.

    Args:
        logits: [B, V], any float type.
        tokens: [B], what was drawn.
        tops: [B], how many of the likeliest tokens each row wants, from 0 to V.
    """
    x = logits.astype(mx.float32)
    most = max(tops)
    values, ids = (
        map(np.asarray, narrow.largest(x, most)) if most else (np.empty((len(tops), 0)), np.empty((len(tops), 0), np.int32))
    )
    found = []
    for row, token, top, value, place in zip(np.asarray(x), tokens, tops, values, ids, strict=True):
        peak = float(row.max())
        whole = peak + np.log(np.exp(row - np.float32(peak)).sum(dtype=np.float64))
        found.append(LogProbabilities(float(row[token]) - whole, place[:top], value[:top].astype(np.float64) - whole))
    return found
