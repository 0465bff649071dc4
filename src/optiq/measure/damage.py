"""Predicted damage of every option of a tensor, from its moments: nats per token.

    damage = 1/2 sum over uses of sum_i row_i d_i gram d_i^T,   d = coded - weight            (rtn, search)
    damage = 1/2 sum over uses of sum_i row_i sum_j pivot_j d_ij^2                            (gptq)

For error feedback the codes of every option need not be computed: what is left of the error of column j after feedback into all
later columns is weighted by the pivot of gram (its conditional variance given the columns to come), not by its diagonal, so the
searched codes' errors under the pivots give the result. On tensors with many rows a fixed, evenly spaced share of them is coded.

Shapes as in `optiq.measure.moments`. The encoder comes in as a function: this layer does not know how codes are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from optiq.kernels.affine import Coded
from optiq.measure.moments import Moments
from optiq.models.topology import Tensor
from optiq.plan.types import UNQUANTIZED_BITS, Option

SAMPLED_WEIGHTS = 1 << 19  # weights that are coded per option: the sampling error of a damage stays near a percent

Encode = Callable[[mx.array, int, int, mx.array | None], Coded]


def damages(
    tensor: Tensor, weight: mx.array, uses: Sequence[Moments], options: Sequence[Option], encode: Encode, feedback: bool
) -> list[float]:
    """Damage per option.

    Args:
        weight: [..., O, I].
        uses: the moments of each use of the tensor (a tied embedding has two).
        options: what to predict for; an unquantized option has none.
        encode: (rows [R, I], bits, group size, gram) -> codes.
        feedback: the encoder that will be used carries its errors on (gptq).
    """
    width = weight.shape[-1]
    rows = weight.reshape(-1, width)
    chosen = sampled_rows(rows.shape)
    if len(chosen) < rows.shape[0]:
        rows = rows[mx.array(chosen)]
    rows = rows.astype(mx.float32)
    row_weights = [_sampled(m.row.reshape(-1), chosen) for m in uses]
    together = combined(uses)
    grams = [m.gram for m in uses]
    weighing = [mx.diag(pivots(gram)) if feedback else gram for gram in grams]
    mx.eval(rows, row_weights, weighing)
    found = []
    for option in options:
        if option.bits == UNQUANTIZED_BITS:
            found.append(0.0)
            continue
        error = encode(rows, option.bits, option.group_size, together).dense() - rows
        parts = [
            0.5 * (row * ((error @ gram if not feedback else error * mx.diagonal(gram)) * error).sum(-1)).sum()
            for row, gram in zip(row_weights, weighing, strict=True)
        ]
        found.append(float(mx.add(*parts) if len(parts) == 2 else sum(parts)))
    return found


def sampled_rows(shape: tuple[int, ...]) -> np.ndarray:
    """Indices of the rows that stand for all rows of a [O, I] weight: all of them, or an even share."""
    count = min(shape[0], max(128, SAMPLED_WEIGHTS // shape[1]))
    return np.unique(np.linspace(0, shape[0] - 1, count).round().astype(np.int32))


def combined(uses: Sequence[Moments]) -> mx.array:
    """One gram for all uses, each weighted by the mean of its row weights."""
    return sum((m.row.mean() * m.gram for m in uses[1:]), uses[0].row.mean() * uses[0].gram)


def pivots(gram: mx.array, damping: float = 0.01) -> mx.array:
    """Conditional variance of each column given the later ones: the squared pivots of a reversed Cholesky factor."""
    from scipy.linalg import cholesky

    values = np.array(gram, dtype=np.float64)
    values += max(damping * np.diagonal(values).mean(), 1e-30) * np.eye(len(values))
    lower = cholesky(values[::-1, ::-1], lower=True)
    return mx.array((np.diagonal(lower)[::-1] ** 2).astype(np.float32))


def _sampled(row: mx.array, chosen: np.ndarray) -> mx.array:
    """Row weights of the chosen rows, scaled so that their sum stands for all rows."""
    if len(chosen) == row.size:
        return row
    part = row[mx.array(chosen)]
    return part * (row.sum() / mx.maximum(part.sum(), 1e-30))
