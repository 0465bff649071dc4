"""Root-mean-square normalisation, alone and with what stands beside it in the layers that use it.

    rms_norm(x, w)      = w x / sqrt(mean x^2 + eps)              over the last axis
    add_rms_norm        = (x + r, rms_norm(x + r, w))             the residual stream and the next layer's input
    gated_rms_norm      = silu(z) rms_norm(x, w)                  behind Gated DeltaNet

x, r, z [..., D], w [D]; arithmetic in float32. 16-bit results are rounded where `mx.fast.rms_norm` rounds: once before the
weight and once after it. The definitions are MLX's own operations; the native forms (native/kernels/norm.h) read slices and
transposes that leave the last axis whole in place, and have derivatives.
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels import native


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """`mx.fast.rms_norm`: [..., D] in the wider type of `x` and `weight`."""
    fast = native.module()
    return mx.fast.rms_norm(x, weight, eps) if fast is None else fast.rms_norm(x, weight, eps)


def add_rms_norm(x: mx.array, residual: mx.array, weight: mx.array | None, eps: float) -> tuple[mx.array, mx.array]:
    """`x + residual` and its `rms_norm`, in one pass over memory.

    Args:
        x: [..., D], any float type.
        residual: as `x`.
        weight: [D], no wider than `x`.
    """
    fast = native.module()
    return add_rms_norm_reference(x, residual, weight, eps) if fast is None else fast.add_rms_norm(x, residual, weight, eps)


def add_rms_norm_reference(x: mx.array, residual: mx.array, weight: mx.array | None, eps: float) -> tuple[mx.array, mx.array]:
    """The definition."""
    total = x + residual
    return total, mx.fast.rms_norm(total, weight, eps)


def gated_rms_norm(x: mx.array, gate: mx.array, weight: mx.array, eps: float) -> mx.array:
    """`silu(gate)` in float32 times `rms_norm(x, weight)`, in the type of `x`; mlx-lm's `Qwen3NextRMSNormGated`."""
    fast = native.module()
    return gated_rms_norm_reference(x, gate, weight, eps) if fast is None else fast.gated_rms_norm(x, gate, weight, eps)


def gated_rms_norm_reference(x: mx.array, gate: mx.array, weight: mx.array, eps: float) -> mx.array:
    """The definition."""
    wide = gate.astype(mx.float32)
    normed = mx.fast.rms_norm(x, weight.astype(x.dtype), eps)
    return (wide * mx.sigmoid(wide) * normed.astype(mx.float32)).astype(x.dtype)
