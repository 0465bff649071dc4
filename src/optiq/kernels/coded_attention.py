"""Attention over keys and values in MLX's affine codes, for a few queries: the codes are read, never made dense.

    out = softmax(scale q Kᵀ + mask) V,     K = s_k q_k + b_k and V = s_v q_v + b_v per group (`kernels.affine`)

Each key/value head is two products with coded matrices (`kernels.quantized`). Many queries are better served by dense keys and
values: `few` says where the line is. Shapes: B, H query heads over G key/value heads, L queries, S tokens, D.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from optiq.kernels import attention, native, quantized

FEW_ROWS = 16  # rows of a product up to which native kernels read codes at memory speed


class Coded(NamedTuple):
    """One side: codes uint32 [B, G, S, W bits / 32], scales and biases [B, G, S, W / group_size].

    Of the W values of a vector the first `width` count; the others fill up its last group.
    """

    codes: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int
    width: int

    def dense(self, dtype: mx.Dtype = mx.float32) -> mx.array:
        """The vectors [B, G, S, D]."""
        x = mx.dequantize(self.codes, self.scales, self.biases, self.group_size, self.bits)
        return x[..., : self.width].astype(dtype)


def few(q: mx.array, groups: int) -> bool:
    """Whether queries [B, H, L, D] are few enough for `attend`."""
    return q.shape[1] // groups * q.shape[2] <= FEW_ROWS


def attend(q: mx.array, keys: Coded, values: Coded, *, scale: float, mask: mx.array | str | None = None) -> mx.array:
    """softmax(scale q Kᵀ + mask) V.

    Args:
        q: [B, H, L, D]; the last query stands at the last key.
        keys, values: of S tokens.
        mask: ``"causal"``, an array that broadcasts to [B, H, L, S] (boolean or additive), or None.

    Returns:
        [B, H, L, Dv] in the type of q.
    """
    batch, heads, length, width = q.shape
    groups, tokens = keys.scales.shape[1:3]
    rows = q.astype(mx.float32).reshape(batch, groups, heads // groups * length, width) * scale
    scores = _product(rows, keys, transpose=True).reshape(batch, heads, length, tokens)
    if isinstance(mask, str):
        mask = mx.arange(tokens)[None] <= mx.arange(tokens - length, tokens)[:, None]
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(mx.float32).min) if mask.dtype == mx.bool_ else scores + mask
    weights = mx.softmax(scores, -1).reshape(batch, groups, heads // groups * length, tokens)
    out = _product(weights, values, transpose=False)
    return out.reshape(batch, heads, length, values.width).astype(q.dtype)


def reference(q: mx.array, keys: Coded, values: Coded, *, scale: float, mask: mx.array | str | None = None) -> mx.array:
    """The definition: attention over the dense vectors; arguments as `attend`."""
    return attention.reference(q, keys.dense(), values.dense(), scale=scale, mask=mask).astype(q.dtype)


def _product(x: mx.array, side: Coded, transpose: bool) -> mx.array:
    """x [B, G, R, D] Wᵀ to [B, G, R, S], or x [B, G, R, S] W to [B, G, R, D]."""
    matrix, bits, group_size = side[:3], side.bits, side.group_size
    filled = side.scales.shape[3] * group_size - side.width
    if transpose and filled:
        x = mx.pad(x, [(0, 0)] * 3 + [(0, filled)])
    if native.module() is None:
        y = mx.quantized_matmul(x, *matrix, transpose=transpose, group_size=group_size, bits=bits)
    else:
        y = mx.stack(
            [
                mx.stack(
                    [
                        quantized.quantized_matmul(
                            x[b, g], *(part[b, g] for part in matrix), group_size=group_size, bits=bits, transpose=transpose
                        )
                        for g in range(x.shape[1])
                    ]
                )
                for b in range(x.shape[0])
            ]
        )
    return y if transpose else y[..., : side.width]
