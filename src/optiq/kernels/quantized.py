"""Products with weights in MLX's affine code format.

    y = x Wᵀ (transpose) or x W,   W = s q + b per group,   x [..., I] or [..., O], codes [O, I * bits / 32]

The definition is the product with the dense values in float32. Stock MLX computes the same; on an x86-64 CPU the native
form replaces it. Its error bound is stated in native/kernels/quantized.h and tested in tests/kernels/test_quantized.py.
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels import native


def quantized_matmul(
    x: mx.array,
    codes: mx.array,
    scales: mx.array,
    biases: mx.array,
    *,
    group_size: int,
    bits: int,
) -> mx.array:
    """y = x Wᵀ.

    Args:
        x: [..., I], any float type.
        codes: [O, I * bits / 32] uint32.
        scales: [O, I / group_size], any float type.
        biases: as `scales`.

    Returns:
        [..., O] in the type of `x`.
    """
    fast = native.module()
    if fast is None:
        return reference(x, codes, scales, biases, group_size=group_size, bits=bits)
    return fast.quantized_matmul(x, codes, scales, biases, group_size, bits)


def reference(x: mx.array, codes: mx.array, scales: mx.array, biases: mx.array, *, group_size: int, bits: int) -> mx.array:
    """The definition: float32 product with the dense values."""
    dense = mx.dequantize(codes, *(p.astype(mx.float32) for p in (scales, biases)), group_size=group_size, bits=bits)
    return (x.astype(mx.float32) @ dense.T).astype(x.dtype)
