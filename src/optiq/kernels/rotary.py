"""Rotary position embedding: pairs of a head's values, turned by an angle that grows with the position.

    a' = a cos t - b sin t      b' = a sin t + b cos t      t = (offset + position) scale / base^(2 i / dims)

for pair i of the first `dims` values: (x_i, x_{i + dims/2}), or (x_2i, x_{2i+1}) where `traditional`; the rest passes. With
`freqs` the angle is (offset + position) scale / freqs_i. Angles are float32 products, as in MLX. The native form
(native/kernels/rotary.h) keeps sine and cosine in float32 for 16-bit inputs, as MLX's Metal kernel does and its CPU form does
not, reads transposed heads in place, and has a derivative. Source: Su et al., arXiv 2104.09864.
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels import native


def rope(
    x: mx.array,
    dims: int,
    *,
    traditional: bool = False,
    base: float | None = None,
    scale: float = 1.0,
    offset: int | mx.array = 0,
    freqs: mx.array | None = None,
) -> mx.array:
    """`mx.fast.rope`.

    Args:
        x: [B, ..., L, D], any float type.
        dims: how many of D are turned; even.
        base: of the wavelengths; else `freqs`, wavelengths over 2 pi, [dims / 2].
        offset: the position of the first token: one number, or one for each of B.

    Returns:
        As `x`.
    """
    fast = native.module()
    if fast is None:
        return mx.fast.rope(x, dims, traditional=traditional, base=base, scale=scale, offset=offset, freqs=freqs)
    turned: mx.array = fast.rope(x, dims, traditional, base, scale, offset, freqs)
    return turned
