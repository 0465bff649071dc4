"""Products with dense weights.

    dense: y = x Wᵀ,  x [..., I], W [O, I]        gather_mm: y = x Wᵀ with the expert that an index names, W [E, O, I]

The definition is MLX's own product. On an x86-64 CPU the native form replaces it, with derivatives by both factors; its
arithmetic and error bounds are stated in native/kernels/gemm.h and tested in tests/kernels/test_dense.py.
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels import native


def dense(x: mx.array, w: mx.array) -> mx.array:
    """y = x Wᵀ.

    Args:
        x: [..., I], any float type.
        w: [O, I], any float type.

    Returns:
        [..., O] in the wider of the two types.
    """
    fast = native.module()
    return reference(x, w) if fast is None else fast.dense(x, w)


def reference(x: mx.array, w: mx.array) -> mx.array:
    """The definition."""
    return x @ w.T


def gather_mm(x: mx.array, w: mx.array, indices: mx.array) -> mx.array:
    """y = x Wᵀ with one expert per cell; only the experts that are named are read.

    Args:
        x: [..., M, I], any float type; the leading axes are broadcast against those of `indices`.
        w: [E, O, I], any float type.
        indices: [...] integers in [0, E).

    Returns:
        [..., M, O] in the wider of the two types. It has a derivative by `x` alone.
    """
    fast = native.module()
    return gather_reference(x, w, indices) if fast is None else fast.gather_mm(x, w, indices)


def gather_reference(x: mx.array, w: mx.array, indices: mx.array) -> mx.array:
    """The definition."""
    return mx.gather_mm(x, w.swapaxes(-1, -2), rhs_indices=indices)
