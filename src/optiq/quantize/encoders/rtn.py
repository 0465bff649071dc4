"""Round to nearest, exactly as `mx.quantize` does it."""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels.affine import Coded, unpack


def rtn(weight: mx.array, bits: int, group_size: int, dtype: mx.Dtype, gram: mx.array | None = None) -> Coded:
    """Codes of `mx.quantize` on the weight in its stored type.

    Args:
        weight: [..., O, I] float32.
        dtype: the 16-bit type of scales and biases, which is also the type that the weight is rounded from.
        gram: not used; every encoder takes the same arguments.
    """
    words, scales, biases = mx.quantize(weight.astype(dtype), group_size, bits)
    return Coded(unpack(words, bits), scales.astype(mx.float32), biases.astype(mx.float32), bits, group_size)
