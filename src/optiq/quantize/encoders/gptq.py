"""Error feedback (GPTQ) with searched scales, then a joint refit.

Columns are rounded one after another; each rounding error is carried into the columns that are not rounded yet, along
the inverse of the damped `gram`, so that the output error and not the weight error is small. Scale and bias of a
group are searched when the group is reached, on the columns as the feedback has left them.

    gram' = gram + damping mean(diag) I,   U = chol(gram'^-1), upper
    e = (w_k - q_k) / U_kk,   w_m -= e U_km for m > k

Source: GPTQ (arXiv 2210.17323), section 3; quantization notes section 2. Rows are independent and done together. Errors reach the
columns of their own block at once and the others in one product per block, as there.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from optiq.kernels.affine import Coded
from optiq.kernels.feedback import round_columns
from optiq.quantize.encoders.refit import BLOCK_COLUMNS, refit
from optiq.quantize.encoders.search import fit_groups

DAMPING = 0.01
CHUNK_ROWS = 16_384


def gptq(
    weight: mx.array,
    bits: int,
    group_size: int,
    dtype: mx.Dtype,
    gram: mx.array | None = None,
    joint: bool = True,
    factor: mx.array | None = None,
) -> Coded:
    """Codes by error feedback.

    Args:
        weight: [..., O, I] float32.
        dtype: 16-bit type of scales and biases.
        gram: [I, I] second moments of the inputs.
        joint: refit scales, biases and codes together afterwards (`refit`).
        factor: `inverse_factor(damped(gram))`, where it is known.
    """
    shape = weight.shape
    rows = weight.reshape(-1, shape[-1])
    gram = mx.eye(shape[-1]) if gram is None else damped(gram)
    factor = inverse_factor(gram) if factor is None else factor
    parts = []
    for start in range(0, rows.shape[0], CHUNK_ROWS):
        part = rows[start : start + CHUNK_ROWS]
        coded = _feedback(part, factor, bits, group_size, dtype)
        parts.append(refit(part, coded, gram, dtype) if joint else coded)
    codes, scales, biases = (mx.concatenate([getattr(p, name) for p in parts]) for name in ("codes", "scales", "biases"))
    lead = shape[:-1]
    return Coded(codes.reshape(shape), scales.reshape(*lead, -1), biases.reshape(*lead, -1), bits, group_size)


def damped(gram: mx.array, damping: float = DAMPING) -> mx.array:
    """`gram` with a multiple of its mean diagonal added, so that it can be inverted."""
    mean = mx.diagonal(gram).mean()
    return gram + mx.maximum(damping * mean, 1e-12) * mx.eye(gram.shape[0])


def inverse_factor(gram: mx.array) -> mx.array:
    """Upper triangular U with U^T U = gram^-1 (float64 inside); 1 / U_kk^2 are the pivots that feedback leaves.

    With gram = R R^T and R upper triangular, U is the inverse of R; R is the Cholesky factor of the columns in reverse order.
    """
    from scipy.linalg import cholesky, lapack

    reverse = np.array(np.array(gram)[::-1, ::-1], dtype=np.float64, order="F")
    inverse, info = lapack.dtrtri(cholesky(reverse, lower=True, overwrite_a=True), lower=1, overwrite_c=1)
    if info != 0:
        raise ArithmeticError(f"inverse of a {gram.shape[0]}-wide second moment failed (LAPACK info {info})")
    return mx.array(inverse[::-1, ::-1].astype(np.float32))


def _feedback(rows: mx.array, factor: mx.array, bits: int, group_size: int, dtype: mx.Dtype) -> Coded:
    top = float(2**bits - 1)
    inverse = mx.array(1.0 / np.array(mx.diagonal(factor)))
    h = 1.0 / mx.diagonal(factor).square()
    codes, scales, biases = [], [], []
    width = rows.shape[1]
    for first in range(0, width, BLOCK_COLUMNS):
        last = min(first + BLOCK_COLUMNS, width)
        block, carried = rows[:, : last - first], []
        for i in range(first, last, group_size):
            j = i + group_size
            _, s, b = fit_groups(block[:, None, :group_size], h[None, i:j], bits, dtype)
            found, errors = round_columns(block[:, :group_size], s[:, 0], b[:, 0], factor[i:j, i:j], inverse[i:j], top)
            block = block[:, group_size:] - errors @ factor[i:j, j:last]
            mx.eval(block, errors, s, b, found)
            codes.append(found)
            scales.append(s[:, 0])
            biases.append(b[:, 0])
            carried.append(errors)
        if last < width:
            rows = rows[:, last - first :] - mx.concatenate(carried, axis=1) @ factor[first:last, last:]
            mx.eval(rows)
    stacked = mx.concatenate(codes, axis=1).astype(mx.uint32)
    return Coded(stacked, mx.stack(scales, axis=1), mx.stack(biases, axis=1), bits, group_size)
