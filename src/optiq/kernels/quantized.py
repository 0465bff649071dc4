"""Products with weights in MLX's affine code format.

    y = x Wᵀ (transpose) or x W,   W = s q + b per group,   x [..., I] or [..., O], codes [O, I * bits / 32]

The definition is the product with the dense values in float32. Stock MLX computes the same; on an x86-64 CPU the native
form replaces it. Its error bounds are stated in native/kernels/quantized.h (up to 16 rows) and gemm.h (more, and x W) and
tested in tests/kernels/test_quantized.py. Derivatives are by x alone: codes are integers.
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
    transpose: bool = True,
) -> mx.array:
    """y = x Wᵀ, or x W.

    Args:
        x: [..., I], or [..., O] where `transpose` is false; any float type.
        codes: [O, I * bits / 32] uint32.
        scales: [O, I / group_size], any float type.
        biases: as `scales`.

    Returns:
        [..., O], or [..., I], in the type of `x`.
    """
    fast = native.module()
    if fast is None:
        return reference(x, codes, scales, biases, group_size=group_size, bits=bits, transpose=transpose)
    return fast.quantized_matmul(x, codes, scales, biases, group_size, bits, transpose)


def reference(
    x: mx.array,
    codes: mx.array,
    scales: mx.array,
    biases: mx.array,
    *,
    group_size: int,
    bits: int,
    transpose: bool = True,
) -> mx.array:
    """The definition: float32 product with the dense values."""
    w = values(codes, scales, biases, group_size, bits)
    return (x.astype(mx.float32) @ (w.T if transpose else w)).astype(x.dtype)


def gather_qmm(
    x: mx.array,
    codes: mx.array,
    scales: mx.array,
    biases: mx.array,
    indices: mx.array,
    *,
    group_size: int,
    bits: int,
    transpose: bool = True,
) -> mx.array:
    """The product with one expert per cell; only the experts that are named are read, each of them once.

    Args:
        x: [..., M, I], or [..., M, O] where `transpose` is false; the leading axes are broadcast against those of `indices`.
        codes: [E, O, I * bits / 32] uint32.
        scales: [E, O, I / group_size], any float type.
        biases: as `scales`.
        indices: [...] integers in [0, E).

    Returns:
        [..., M, O], or [..., M, I], in the type of `x`.
    """
    fast = native.module()
    if fast is None:
        return gather_reference(x, codes, scales, biases, indices, group_size=group_size, bits=bits, transpose=transpose)
    return fast.gather_qmm(x, codes, scales, biases, indices, group_size, bits, transpose)


def gather_reference(
    x: mx.array,
    codes: mx.array,
    scales: mx.array,
    biases: mx.array,
    indices: mx.array,
    *,
    group_size: int,
    bits: int,
    transpose: bool = True,
) -> mx.array:
    """The definition."""
    return mx.gather_qmm(x, codes, scales, biases, rhs_indices=indices, transpose=transpose, group_size=group_size, bits=bits)


def dequantize_rows(
    indices: mx.array,
    codes: mx.array,
    scales: mx.array,
    biases: mx.array,
    *,
    group_size: int,
    bits: int,
    dtype: mx.Dtype | None = None,
) -> mx.array:
    """Rows of W: what an embedding with coded weights looks up.

    Args:
        indices: [...] integers in [0, O).
        codes: [O, I * bits / 32] uint32.
        scales: [O, I / group_size], any float type.
        biases: as `scales`.
        dtype: of the result; None is the type of `scales`.

    Returns:
        [..., I]: s q + b in float32, rounded to `dtype`.
    """
    dtype = scales.dtype if dtype is None else dtype
    fast = native.module()
    if fast is not None:
        return fast.dequantize_rows(indices, codes, scales, biases, group_size, bits, dtype)
    return values(codes[indices], scales[indices], biases[indices], group_size, bits).astype(dtype)


def dequantize(codes: mx.array, scales: mx.array, biases: mx.array, *, group_size: int, bits: int) -> mx.array:
    """All of W in float32.

    MLX's own dequantization makes several arrays of that size on a CPU, the native form the result alone. Where scales and
    biases are values of a 16-bit type, as in files, s q is exact in float32, so that both give the same bits.

    Args:
        codes: [..., I * bits / 32] uint32.
        scales: [..., I / group_size], any float type.
        biases: as `scales`.

    Returns:
        [..., I]: s q + b.
    """
    fast = native.module()
    if fast is None:
        return values(codes, scales, biases, group_size, bits)
    rows = [part.reshape(-1, part.shape[-1]) for part in (codes, scales, biases)]
    found = fast.dequantize_rows(mx.arange(rows[0].shape[0]), *rows, group_size, bits, mx.float32)
    return found.reshape(*codes.shape[:-1], -1)


def values(codes: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int) -> mx.array:
    """The float32 values of coded rows, [..., I]."""
    return mx.dequantize(codes, *(p.astype(mx.float32) for p in (scales, biases)), group_size=group_size, bits=bits)
