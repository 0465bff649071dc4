"""MLX's affine code format: packing, unpacking and the dense values, as plain array operations.

A weight row is cut into groups of `group_size`; each group has a scale s and a bias b in 16 bits, each value a code q
of `bits` bits, and stands for w = s q + b. Codes lie in one little-endian bit stream per row, cut into 32-bit words.

Shapes: codes [..., I] uint32, words [..., I * bits / 32] uint32, scales and biases [..., I / group_size].

Source: mlx/backend/cpu/quantized.cpp describes the layout; `tests/kernels/test_affine.py` compares with `mx.quantize`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import mlx.core as mx

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Coded:
    """One quantized tensor.

    Args:
        codes: [..., I] uint32, each below 2^bits.
        scales: [..., I / group_size] float32, exactly representable in the stored 16-bit type.
        biases: as `scales`.
    """

    codes: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int

    def dense(self) -> mx.array:
        """The float32 values that the codes stand for, [..., I]."""
        shape = self.codes.shape
        grouped = self.codes.reshape(*shape[:-1], -1, self.group_size).astype(mx.float32)
        return (grouped * self.scales[..., None] + self.biases[..., None]).reshape(shape)

    def words(self) -> mx.array:
        """The packed codes."""
        return pack(self.codes, self.bits)


def pack(codes: mx.array, bits: int) -> mx.array:
    """Codes [..., I] to words [..., I * bits / 32]."""
    if bits in (2, 4, 8):
        per_word = 32 // bits
        shifts = mx.arange(per_word, dtype=mx.uint32) * bits
        return (codes.reshape(*codes.shape[:-1], -1, per_word) << shifts).sum(-1).astype(mx.uint32)
    grouped = codes.reshape(*codes.shape[:-1], -1, 32)  # 32 codes fill `bits` words
    return mx.stack([_word(grouped, k, bits) for k in range(bits)], axis=-1).reshape(*codes.shape[:-1], -1)


def unpack(words: mx.array, bits: int) -> mx.array:
    """Words [..., W] to codes [..., W * 32 / bits]."""
    if bits in (2, 4, 8):
        shifts = mx.arange(32 // bits, dtype=mx.uint32) * bits
        codes = (words[..., None] >> shifts) & ((1 << bits) - 1)
        return codes.reshape(*words.shape[:-1], -1)
    grouped = words.reshape(*words.shape[:-1], -1, bits)
    return mx.stack([_code(grouped, i, bits) for i in range(32)], axis=-1).reshape(*words.shape[:-1], -1)


def _word(codes: mx.array, k: int, bits: int) -> mx.array:
    """Word k of every 32 codes; a code that straddles two words gives each its part."""
    first, last = 32 * k // bits, (32 * k + 31) // bits
    starts = [(i, i * bits - 32 * k) for i in range(first, last + 1)]
    return reduce(mx.bitwise_or, [codes[..., i] << at if at >= 0 else codes[..., i] >> -at for i, at in starts])


def _code(words: mx.array, i: int, bits: int) -> mx.array:
    """Code i of every `bits` words."""
    k, at = divmod(i * bits, 32)
    code = words[..., k] >> at
    if at + bits > 32:
        code = code | (words[..., k + 1] << (32 - at))
    return code & ((1 << bits) - 1)


def rounded(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """Float32 values rounded to a 16-bit type, still as float32."""
    return x.astype(dtype).astype(mx.float32)
