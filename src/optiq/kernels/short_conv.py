"""The short causal depthwise convolution in front of a recurrent layer: shifted products, and a native form on x86-64 CPUs.

    y[b, t, c] = sum_k w[c, k] x[b, t + k, c]        x [B, L + K - 1, C], w [C, K, 1], y [B, L, C]

The general convolution of MLX is five times slower on a CPU at the widths that recurrent layers use (K = 4).
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from optiq.kernels import native

MOST_TAPS = 8  # of the native form


def short_conv(x: mx.array, weight: mx.array) -> mx.array:
    """Depthwise convolution without padding; `weight` is in MLX's layout [C, K, 1]. The native form sums in float32."""
    fast = native.module()
    if fast is None or x.dtype != weight.dtype or weight.shape[1] > MOST_TAPS:
        return reference(x, weight)
    return fast.short_conv(x, weight)


def reference(x: mx.array, weight: mx.array) -> mx.array:
    """The definition, in the type of the inputs."""
    taps = weight.shape[1]
    length = x.shape[1] - taps + 1
    y = x[:, :length] * weight[:, 0, 0]
    for k in range(1, taps):
        y = y + x[:, k : k + length] * weight[:, k, 0]
    return y


def replaceable(module: nn.Module) -> bool:
    """True for an `nn.Conv1d` that `short_conv` computes: depthwise, unpadded, of stride 1, with few taps."""
    return (
        isinstance(module, nn.Conv1d)
        and module.weight.shape[2] == 1
        and module.groups == module.weight.shape[0]
        and (module.stride, module.padding, module.dilation) == (1, 0, 1)
        and module.weight.shape[1] <= MOST_TAPS
    )
