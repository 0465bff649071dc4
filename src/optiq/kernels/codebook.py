"""Codebooks for the coordinates of a rotated vector, which are nearly normal: Lloyd-Max and uniform.

A code stands for a level, an integer in a signed byte, times a scale that the vector carries; small integers let a processor
multiply bytes. `unit` is what one step of a level is worth where the coordinates have variance 1.

    Lloyd-Max   levels are the means of the normal distribution between the midpoints of neighbouring levels (fixed point)
    uniform     levels are equally spaced and symmetric, with the spacing of the least squared error

Rounding the levels to integers adds less than 0.6 % to the error at 4 bits and less below (`tests/kernels/test_codebook.py`).

Source: S. P. Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28 (1982); J. Max, IRE Trans. 6 (1960);
the rotation makes them fit: TurboQuant, arXiv 2504.19874, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

BITS = (1, 2, 3, 4, 5, 6, 8)
LLOYD_BITS = (1, 2, 3, 4)
_LARGEST = 127


@dataclass(frozen=True)
class Codebook:
    """Levels of the codes 0, 1, ..., ascending.

    Args:
        bits: of a code.
        levels: 2^bits integers in [-128, 127], strictly ascending.
        unit: value of level 1 where coordinates have variance 1.
    """

    bits: int
    levels: tuple[int, ...]
    unit: float

    @property
    def bounds(self) -> tuple[float, ...]:
        """The 2^bits - 1 midpoints, in units of levels: a value's code is the number of bounds below it."""
        return tuple((a + b) / 2 for a, b in zip(self.levels, self.levels[1:], strict=False))


@cache
def lloyd_max(bits: int) -> tuple[float, ...]:
    """The 2^bits levels of the least mean squared error for N(0, 1), ascending, to 1e-12.

    Raises:
        ValueError: bits not in `LLOYD_BITS`.
    """
    if bits not in LLOYD_BITS:
        raise ValueError(f"a Lloyd-Max codebook of {bits} bits, expected one of {LLOYD_BITS}")
    half = [(i + 0.5) * 3 / 2 ** (bits - 1) for i in range(2 ** (bits - 1))]
    while True:
        edges = [0.0, *((a + b) / 2 for a, b in zip(half, half[1:], strict=False)), math.inf]
        better = [(_density(a) - _density(b)) / (_below(b) - _below(a)) for a, b in zip(edges, edges[1:], strict=False)]
        change = max(abs(a - b) for a, b in zip(half, better, strict=True))
        half = better
        if change < 1e-13:
            return (*(-x for x in reversed(half)), *half)


@cache
def lloyd(bits: int) -> Codebook:
    """The Lloyd-Max codebook in integer levels."""
    exact = lloyd_max(bits)
    unit = exact[-1] / _LARGEST
    return Codebook(bits, tuple(round(x / unit) for x in exact), unit)


@cache
def uniform(bits: int) -> Codebook:
    """The uniform codebook with the best spacing for N(0, 1): odd multiples of half a step; at 8 bits all of [-128, 127].

    Raises:
        ValueError: bits not in `BITS`.
    """
    if bits not in BITS:
        raise ValueError(f"a codebook of {bits} bits, expected one of {BITS}")
    count = 2**bits
    spacing = _best_spacing(count)
    if bits == 8:  # 256 odd numbers do not fit a signed byte: all integers do
        return Codebook(bits, tuple(range(-128, 128)), spacing)
    step = _LARGEST // (count - 1)
    return Codebook(bits, tuple(step * (2 * i + 1 - count) for i in range(count)), spacing / (2 * step))


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _below(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def uniform_error(count: int, spacing: float) -> float:
    """Mean squared error of N(0, 1) on `count` levels at odd multiples of spacing / 2."""
    total = 0.0
    for i in range(count // 2):
        low, level = i * spacing, (i + 0.5) * spacing
        high = low + spacing if i + 1 < count // 2 else math.inf
        mass = _below(high) - _below(low)
        first = _density(low) - _density(high)
        tail = 0.0 if math.isinf(high) else high * _density(high)
        second = mass + low * _density(low) - tail
        total += 2 * (second - 2 * level * first + level * level * mass)
    return total


def _best_spacing(count: int) -> float:
    """Golden-section search of the one minimum of `uniform_error`."""
    low, high, ratio = 0.5 / count, 8.0 / count + 1.0, (math.sqrt(5) - 1) / 2
    while high - low > 1e-10:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if uniform_error(count, a) < uniform_error(count, b):
            high = b
        else:
            low = a
    return (low + high) / 2
