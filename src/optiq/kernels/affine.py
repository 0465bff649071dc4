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
    grouped = codes.reshape(*codes.shape[:-1], -1, 32)
    words = []
    for word in range(bits):  # 32 codes fill `bits` words; a code that straddles two gives each its part
        first, last = 32 * word // bits, (32 * word + 31) // bits
        shifts = {i: i * bits - 32 * word for i in range(first, last + 1)}
        parts = [grouped[..., i] << n if n >= 0 else grouped[..., i] >> -n for i, n in shifts.items()]
        words.append(reduce(mx.bitwise_or, parts))
    return mx.stack(words, axis=-1).reshape(*codes.shape[:-1], -1)


def unpack(words: mx.array, bits: int) -> mx.array:
    """Words [..., W] to codes [..., W * 32 / bits]."""
    if bits in (2, 4, 8):
        shifts = mx.arange(32 // bits, dtype=mx.uint32) * bits
        codes = (words[..., None] >> shifts) & ((1 << bits) - 1)
        return codes.reshape(*words.shape[:-1], -1)
    grouped = words.reshape(*words.shape[:-1], -1, bits)
    codes = []
    for i in range(32):
        word, start = divmod(i * bits, 32)
        code = grouped[..., word] >> start
        if start + bits > 32:
            code = code | (grouped[..., word + 1] << (32 - start))
        codes.append(code & ((1 << bits) - 1))
    return mx.stack(codes, axis=-1).reshape(*words.shape[:-1], -1)


def rounded(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """Float32 values rounded to a 16-bit type, still as float32."""
    return x.astype(dtype).astype(mx.float32)
