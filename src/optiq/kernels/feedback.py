"""Rounding of a group's columns, one after another, each error carried on: the inner loops of error feedback and of its refit.

    round_columns   q_j = clip(nearest((w_j - b) / s)),  e_j = (w_j - (q_j s + b)) p_j,  w_m -= e_j t_jm          for m > j
    step_columns    q_j = clip(nearest(q_j + r_j / (h_jj s))),  change = (q_j - old q_j) s,  r_m -= change h_jm   for all m

Arithmetic is float32, rounded after every operation; the native form (native/kernels/feedback.h) gives the same bits.
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels import native


def round_columns(
    w: mx.array, s: mx.array, b: mx.array, triangle: mx.array, inverse: mx.array, top: float
) -> tuple[mx.array, mx.array]:
    """Codes of a group's columns, and the errors that the columns behind the group have yet to take in.

    Args:
        w: [O, g] float32, g at most 128.
        s: scale of each row, [O].
        b: bias of each row, [O].
        triangle: t, [g, g]; what lies above the diagonal counts.
        inverse: p, [g].
        top: the largest code.

    Returns:
        Codes and errors, [O, g] float32.
    """
    fast = native.module()
    form = round_columns_reference if fast is None else fast.round_columns
    return tuple(form(w, s, b, triangle, inverse, top))  # type: ignore[return-value]


def round_columns_reference(
    w: mx.array, s: mx.array, b: mx.array, triangle: mx.array, inverse: mx.array, top: float
) -> tuple[mx.array, mx.array]:
    """The definition."""
    codes, errors = [], []
    for j in range(w.shape[1]):
        column = w[:, 0]
        q = mx.clip(mx.round((column - b) / s), 0.0, top)
        error = (column - (q * s + b)) * inverse[j]
        w = w[:, 1:] - error[:, None] * triangle[j, j + 1 :]
        codes.append(q)
        errors.append(error)
    return mx.stack(codes, axis=1), mx.stack(errors, axis=1)


def step_columns(codes: mx.array, s: mx.array, r: mx.array, local: mx.array, top: float) -> tuple[mx.array, mx.array]:
    """One exact coordinate step per column of a group; on the grid it never raises the objective.

    Args:
        codes: [O, g] float32, g at most 128.
        s: scale of each row, [O].
        r: residual gradient of the group's columns, [O, g] float32.
        local: h, [g, g].
        top: the largest code.

    Returns:
        Codes and residual gradient behind the steps, [O, g] float32.
    """
    fast = native.module()
    form = step_columns_reference if fast is None else fast.step_columns
    return tuple(form(codes, s, r, local, top))  # type: ignore[return-value]


def step_columns_reference(codes: mx.array, s: mx.array, r: mx.array, local: mx.array, top: float) -> tuple[mx.array, mx.array]:
    """The definition."""
    columns = []
    diagonal = mx.diagonal(local)
    for j in range(codes.shape[1]):
        old = codes[:, j]
        new = mx.clip(mx.round(old + r[:, j] / (diagonal[j] * s)), 0.0, top)
        r = r - ((new - old) * s)[:, None] * local[j]
        columns.append(new)
    return mx.stack(columns, axis=1), r
