"""From adjusted logits to the tokens that may be drawn: temperature, top-k, top-p and min-p, for rows side by side.

On logits l of one row, in this order, p being the softmax of what is left:

    l /= temperature
    keep the top k; of those the likeliest until they have top_p of the probability; of those p_v >= min_p · max p

Rows with top-k keep `K` candidates in falling order, and all of it is lazy (`top_weights`): the largest of every 64 logits name
the blocks that can hold one of the K largest, so what is sorted is small. Rows without top-k keep the whole vocabulary, on the
host (`full_weights`): top-p then needs an order whose length depends on the values, and NumPy's exponential takes a
thirtieth of the time of MLX's on a CPU. A row's numbers do not depend on its neighbours: rows of one call have the same K.

Source: top-p: Holtzman et al. 2020, arXiv 1904.09751. Min-p: Nguyen et al. 2024, arXiv 2407.01082. The order is that of
transformers and vLLM, which model cards assume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from optiq.errors import ModelError
from optiq.generate.sampling import Sampling

BLOCK = 64  # logits per block
# As good as 0 where two logits differ at all; smaller ones are 0 in float32, and 0 / 0 is no number.
LEAST_TEMPERATURE = 1e-30
STEP = 32  # K is a multiple of this, so that rows with different k are often one group


def kept(top_k: int) -> int:
    """How many candidates a row with this top-k has: K."""
    return STEP * math.ceil(top_k / STEP)


def largest(x: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The largest numbers of each row, in falling order.

    Args:
        x: [B, W] float32, not NaN.
        count: K, at most W.

    Returns:
        Values [B, K] and their places [B, K] int32. Which of equals at the end are taken is not said, but always the same.
    """
    rows, width = x.shape
    places = None
    if width > 2 * count * BLOCK:
        x = mx.pad(x, ((0, 0), (0, -width % BLOCK)), constant_values=-math.inf) if width % BLOCK else x
        blocks = x.reshape(rows, -1, BLOCK)
        best = mx.argpartition(-blocks.max(-1), kth=count - 1, axis=-1)[:, :count]
        places = (best[..., None] * BLOCK + mx.arange(BLOCK, dtype=mx.uint32)).reshape(rows, -1)
        x = mx.take_along_axis(blocks, best[..., None], axis=1).reshape(rows, -1)
    if count < x.shape[-1]:
        best = mx.argpartition(-x, kth=count - 1, axis=-1)[:, :count]
        x, places = mx.take_along_axis(x, best, -1), best if places is None else mx.take_along_axis(places, best, -1)
    order = mx.argsort(-x, axis=-1)
    places = order if places is None else mx.take_along_axis(places, order, -1)
    return mx.take_along_axis(x, order, -1), places.astype(mx.int32)


def top_weights(x: mx.array, settings: Sequence[Sampling]) -> tuple[mx.array, mx.array]:
    """The candidates of rows with top-k.

    Args:
        x: [B, V] float32, adjusted logits.
        settings: one per row, with a temperature above 0, a top-k above 0 and the same `kept`.

    Returns:
        Weights [B, K], 0 where dropped, not divided by their sum, and token ids [B, K].
    """
    count = min(kept(settings[0].top_k), x.shape[-1])
    values, ids = largest(x, count)
    values = (values - values[:, :1]) / _column([_temperature(row) for row in settings])  # from the top: none can overflow
    inside = mx.arange(count) < _column([row.top_k for row in settings], mx.int32)
    weights = mx.where(inside, mx.exp(values), 0.0)
    if any(row.top_p < 1 for row in settings):
        sums = mx.cumsum(weights, axis=-1)
        shares = _column([row.top_p if row.top_p < 1 else math.inf for row in settings])
        weights = mx.where(sums - weights < shares * sums[:, -1:], weights, 0.0)  # what likelier ones have already
    if any(row.min_p for row in settings):
        floors = _column([math.log(row.min_p) if row.min_p else -math.inf for row in settings])
        weights = mx.where(values >= floors, weights, 0.0)
    return weights, ids


def _temperature(settings: Sampling) -> float:
    return max(settings.temperature, LEAST_TEMPERATURE)


def _column(values: Sequence[float], dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(values, dtype)[:, None]


def full_weights(x: NDArray[np.float32], settings: Sampling) -> NDArray[np.float32]:
    """The weights of a row without top-k: [V], 0 where dropped, not divided by their sum.

    Args:
        x: [V], adjusted logits.
        settings: with a temperature above 0.

    Raises:
        ModelError: the largest logit is no finite number.
    """
    most = x.max()
    if not np.isfinite(most):
        raise ModelError(
            f"the model's largest logit is {most}, expected a finite number; its weights are damaged, get them again"
        )
    with np.errstate(over="ignore"):  # far below the largest: -inf, a weight of 0
        weights = np.exp((x - most) / np.float32(_temperature(settings)))
    floor = np.float32(settings.min_p)
    if settings.top_p < 1:
        floor = max(floor, _least_weight(weights, settings.top_p))
    return np.where(weights >= floor, weights, np.float32(0)) if floor > 0 else weights


def _least_weight(weights: NDArray[np.float32], share: float) -> np.float32:
    """The smallest weight that is kept by top-p; equal ones are kept together.

    Weights below (1 - share) · sum / V have less than 1 - share of the sum in all: what is kept lies above, and is sorted.
    """
    total = float(weights.sum(dtype=np.float64))
    ordered = np.sort(weights[weights >= (1 - share) * total / len(weights)])[::-1]
    before = np.cumsum(ordered, dtype=np.float64) - ordered
    return np.float32(ordered[before < share * total][-1])
