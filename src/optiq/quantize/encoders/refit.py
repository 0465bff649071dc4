"""Joint refit: with the codes of all groups in place, improve scales, biases and codes against the full second moment.

The objective of a row is d gram d^T with d = w - w^. Group after group, the residual gradient r = d gram is kept up to date, and

    scales and biases   the 2 x 2 least squares step  (A^T gram_gg A) t = A^T r_g,  A = [q | 1], rounded to the stored type
    codes               one exact coordinate step per column: q += round(r_j / (gram_jj s)), clipped

are taken where they lower the objective of that row after rounding, so that no sweep makes any row worse.

Source: quantization notes section 2, "Refit" (block Gauss-Seidel instead of one dense solve per row).
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels.affine import Coded, rounded
from optiq.kernels.feedback import step_columns

SWEEPS = 2
BLOCK_COLUMNS = 1024  # a multiple of every group size; a change reaches the columns of its block at once, the others per block


def refit(weight: mx.array, coded: Coded, gram: mx.array, dtype: mx.Dtype, sweeps: int = SWEEPS) -> Coded:
    """The same kind of codes with a smaller objective.

    Args:
        weight: target rows [O, I] float32.
        coded: codes to improve.
        gram: [I, I], the second moment to weigh errors with.
    """
    g, top, width = coded.group_size, float(2**coded.bits - 1), weight.shape[1]
    q = coded.codes.astype(mx.float32)
    s, b = coded.scales, coded.biases
    groups = q.shape[1] // g
    parts = [(q[:, k * g : (k + 1) * g], s[:, k], b[:, k]) for k in range(groups)]
    residual = (weight - coded.dense()) @ gram
    for first in [*range(0, width, BLOCK_COLUMNS)] * sweeps:
        last = min(first + BLOCK_COLUMNS, width)
        inside, changes = residual[:, first:last], []
        for i in range(first, last, g):
            j = i + g
            local = gram[i:j, i:j]
            codes, scale, bias = parts[i // g]
            before = codes * scale[:, None] + bias[:, None]
            codes, r = step_columns(codes, scale, inside[:, i - first : j - first], local, top)
            scale, bias, r = _step_scale(codes, scale, bias, r, local, dtype)
            changes.append(codes * scale[:, None] + bias[:, None] - before)
            inside = inside - changes[-1] @ gram[i:j, first:last]
            parts[i // g] = (codes, scale, bias)
            mx.eval(inside, changes[-1], codes, scale, bias)
        change = mx.concatenate(changes, axis=1)
        parted = [(a, z) for a, z in ((0, first), (first, last), (last, width)) if a < z]
        residual = mx.concatenate(
            [inside if a == first else residual[:, a:z] - change @ gram[first:last, a:z] for a, z in parted], axis=1
        )
        mx.eval(residual)
    stacked = mx.concatenate([part[0] for part in parts], axis=1).astype(mx.uint32)
    scales, biases = (mx.stack([part[n] for part in parts], axis=1) for n in (1, 2))
    return Coded(stacked, scales, biases, coded.bits, g)


def _step_scale(
    codes: mx.array, scale: mx.array, bias: mx.array, r: mx.array, local: mx.array, dtype: mx.Dtype
) -> tuple[mx.array, mx.array, mx.array]:
    """The least squares step in (scale, bias) of a group, taken by the rows that it helps after rounding."""
    weighted = codes @ local
    ones = local.sum(0)
    qq, q1, one = (weighted * codes).sum(-1), weighted.sum(-1), ones.sum()
    rq, r1 = (r * codes).sum(-1), r.sum(-1)
    determinant = qq * one - q1 * q1
    sound = determinant > 1e-6 * qq * one
    safe = mx.where(sound, determinant, 1.0)
    new_scale = rounded(scale + mx.where(sound, (one * rq - q1 * r1) / safe, 0.0), dtype)
    new_bias = rounded(bias + mx.where(sound, (qq * r1 - q1 * rq) / safe, r1 / one), dtype)
    ds, db = new_scale - scale, new_bias - bias
    gain = 2 * (ds * rq + db * r1) - (ds * ds * qq + 2 * ds * db * q1 + db * db * one)
    take = (gain > 0) & (mx.abs(new_scale) > 0)
    ds, db = mx.where(take, ds, 0.0), mx.where(take, db, 0.0)
    r = r - ds[:, None] * weighted - db[:, None] * ones
    return scale + ds, bias + db, r
