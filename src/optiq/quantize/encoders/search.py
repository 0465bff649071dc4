"""Weighted search of scale and bias per group, on values that are already rounded to their stored type.

For each group: start from several shrunken ranges and from what `mx.quantize` would choose; alternate codes (nearest, given scale
and bias) and scale and bias (weighted least squares, given codes); keep what has the smallest weighted squared error,

    sum_j h_j (w_j - s q_j - b)^2,     s = cov_h(q, w) / var_h(q),  b = mean_h(w) - s mean_h(q)

Because s and b are rounded before the codes are chosen, the codes make up for that rounding. `mx.quantize`'s own choice is among
the candidates, so the result is never worse than round to nearest in this measure.

Source: quantization notes section 2, "Scale search".
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels.affine import Coded, rounded

SHRINKS = {2: (1.0, 0.9, 0.8, 0.7, 0.6), 3: (1.0, 0.93, 0.86, 0.79, 0.7), 4: (1.0, 0.95, 0.9, 0.84)}
FINE_SHRINKS = (1.0, 0.97)
REFINEMENTS = 3
CHUNK_FLOATS = 1 << 22  # weights per pass: bounds the memory of the temporaries (16 MB each)


def search(weight: mx.array, bits: int, group_size: int, dtype: mx.Dtype, gram: mx.array | None = None) -> Coded:
    """Codes by weighted search.

    Args:
        weight: [..., O, I] float32.
        dtype: 16-bit type of scales and biases.
        gram: [I, I] whose diagonal weighs the columns; None: all columns alike.
    """
    shape = weight.shape
    rows = weight.reshape(-1, shape[-1])
    h = mx.ones(shape[-1]) if gram is None else mx.diagonal(gram)
    h = mx.maximum(h, 1e-4 * h.mean() + 1e-30).reshape(-1, group_size)
    parts = []
    step = max(1, CHUNK_FLOATS // shape[-1])
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        found = fit_groups(part.reshape(part.shape[0], -1, group_size), h, bits, dtype)
        mx.eval(found)
        parts.append(found)
    codes, scales, biases = (mx.concatenate([p[i] for p in parts]) for i in range(3))
    lead = shape[:-1]
    return Coded(codes.reshape(shape), scales.reshape(*lead, -1), biases.reshape(*lead, -1), bits, group_size)


def fit_groups(
    w: mx.array, h: mx.array, bits: int, dtype: mx.Dtype, refinements: int = REFINEMENTS
) -> tuple[mx.array, mx.array, mx.array]:
    """Codes [R, G, g] uint32, scales and biases [R, G] for groups w [R, G, g] with column weights h [G, g]."""
    top = float(2**bits - 1)
    share = h / h.sum(-1, keepdims=True)
    mean = (share * w).sum(-1, keepdims=True)
    high, low = w.max(-1, keepdims=True), w.min(-1, keepdims=True)

    best_error, best_s, best_b = None, None, None
    starts = [((high - low) * shrink / top, mean + (low - mean) * shrink) for shrink in SHRINKS.get(bits, FINE_SHRINKS)]
    for s, b in [_edge_rule(high, low, top), *starts]:
        for step in range(refinements if best_error is not None else 1):
            s, b = rounded(s, dtype), rounded(b, dtype)
            q = _codes(w, s, b, top)
            error = (share * (w - (s * q + b)).square()).sum(-1, keepdims=True)
            if best_error is None:
                best_error, best_s, best_b = error, s, b
            else:
                better = error < best_error
                best_error = mx.where(better, error, best_error)
                best_s, best_b = mx.where(better, s, best_s), mx.where(better, b, best_b)
            if step + 1 < refinements:
                s, b = _least_squares(w, q, share, mean, s)
    q = _codes(w, best_s, best_b, top)
    return q.astype(mx.uint32), best_s[..., 0], best_b[..., 0]


def _codes(w: mx.array, s: mx.array, b: mx.array, top: float) -> mx.array:
    return mx.clip(mx.round((w - b) / s), 0.0, top)


def _least_squares(w: mx.array, q: mx.array, share: mx.array, mean: mx.array, fallback: mx.array) -> tuple[mx.array, mx.array]:
    q_mean = (share * q).sum(-1, keepdims=True)
    centred = share * (q - q_mean)
    variance = (centred * q).sum(-1, keepdims=True)
    s = (centred * w).sum(-1, keepdims=True) / mx.maximum(variance, 1e-12)
    s = mx.where((variance > 1e-12) & (mx.abs(s) > 1e-12), s, fallback)
    return s, mean - s * q_mean


def _edge_rule(high: mx.array, low: mx.array, top: float) -> tuple[mx.array, mx.array]:
    """Scale and bias as `mx.quantize` chooses them: the larger edge is exact and zero lies on the grid."""
    scale = mx.maximum((high - low) / top, 1e-7)
    negative = mx.abs(low) > mx.abs(high)
    scale = mx.where(negative, scale, -scale)
    edge = mx.where(negative, low, high)
    steps = mx.round(edge / scale)
    on_grid = steps != 0
    return mx.where(on_grid, edge / mx.where(on_grid, steps, 1.0), scale), mx.where(on_grid, edge, 0.0)
