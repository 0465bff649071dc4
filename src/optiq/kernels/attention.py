"""Attention with grouped heads: softmax(scale q kᵀ + mask) v.

    s_ij = scale q_i · k_j + mask_ij        out_i = sum_j e^{s_ij} v_j / (sum_j e^{s_ij} + e^{sink})

Shapes, with H query heads over G key/value heads (H a multiple of G; query head h reads head h G / H):

    q [B, H, L, D]    k [B, G, S, D]    v [B, G, S, Dv]    out [B, H, L, Dv]    sinks [H]

The last query stands at the last key: query i has the position S - L + i. A mask is ``"causal"``, or a boolean (true: seen)
or additive array that broadcasts to [B, H, L, S]. A row that sees nothing gives what stock MLX gives: the mean of all values
where the mask is boolean or causal, zeros where there is a sink, NaN where an additive mask is -inf throughout.

The native form (native/kernels/attention.h states its arithmetic) reads keys and values where they lie, so that the slice of
a longer cache is not copied, keeps no scores, and up to `FEW_QUERIES` queries gives a row the same bits whatever else is in
the batch, and whether or not later queries are with it. Stock MLX computes what the native form does not: Metal and CUDA,
types other than float32, float16 and bfloat16.
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels import native

FEW_QUERIES = 16

_TYPES = (mx.float32, mx.float16, mx.bfloat16)


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    window: int = 0,
    sinks: mx.array | None = None,
) -> mx.array:
    """softmax(scale q kᵀ + mask) v.

    Args:
        q: [B, H, L, D].
        k: [B, G, S, D]; any strides, a gap in the last axis costs a copy.
        v: [B, G, S, Dv]; as `k`.
        scale: usually D^-1/2.
        mask: ``"causal"``, an array that broadcasts to [B, H, L, S], or None.
        window: how many of the keys up to its position a query sees; 0: all. Only with ``"causal"``.
        sinks: [H], one more score per head that has no value.

    Returns:
        [B, H, L, Dv] in the type that q, k and v promote to.

    Raises:
        ValueError: shapes or masks that do not fit, a window without ``"causal"``.
    """
    if isinstance(mask, str) and mask != "causal":
        raise ValueError(f"attention: mask is {mask!r}, expected 'causal', an array or None")
    if window and not isinstance(mask, str):
        raise ValueError(f"attention: a window of {window} keys needs mask='causal'")
    fast = native.module()
    dtype = mx.result_type(q, k, v)
    array = mask if isinstance(mask, mx.array) else None
    if fast is None or dtype not in _TYPES or (array is not None and array.dtype not in (mx.bool_, *_TYPES)):
        stock_mask = _window_mask(q.shape[2], k.shape[2], window) if window else mask
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=stock_mask, sinks=sinks)
    q, k, v = (x if x.dtype == dtype else x.astype(dtype) for x in (q, k, v))
    return fast.attention(q, k, v, float(scale), array, mask == "causal" if array is None else False, window, sinks)


def reference(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    window: int = 0,
    sinks: mx.array | None = None,
) -> mx.array:
    """The definition, in float32 and with all scores in memory; arguments as `attention`."""
    batch, heads, length, width = q.shape
    groups, keys = k.shape[1:3]
    share = heads // groups
    dtype = mx.result_type(q, k, v)
    q, k, v = (x.astype(mx.float32) for x in (q, k, v))
    scores = (q.reshape(batch, groups, share, length, width) * scale) @ mx.swapaxes(k, 2, 3)[:, :, None]
    scores = scores.reshape(batch, heads, length, keys)
    if isinstance(mask, str):
        mask = _window_mask(length, keys, window)
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(mx.float32).min) if mask.dtype == mx.bool_ else scores + mask
    if sinks is not None:
        column = mx.broadcast_to(sinks.astype(mx.float32)[:, None, None], (batch, heads, length, 1))
        scores = mx.concatenate([scores, column], axis=-1)
    weights = mx.softmax(scores, axis=-1)[..., :keys].reshape(batch, groups, share, length, keys)
    return (weights @ v[:, :, None]).reshape(batch, heads, length, v.shape[-1]).astype(dtype)


def _window_mask(length: int, keys: int, window: int) -> mx.array:
    """Who sees whom, [L, S] boolean: keys up to the query's position, the last `window` of them where that is not 0."""
    position = mx.arange(keys - length, keys)[:, None]
    key = mx.arange(keys)[None]
    seen = key <= position
    return seen & (key > position - window) if window else seen
