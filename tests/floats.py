"""What the tests of small float operations share: instruction levels, arrays in every type and memory layout, float64 checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from optiq.kernels import native

TYPES = (mx.float32, mx.bfloat16, mx.float16)
UNIT = {mx.float32: 2.0**-23, mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11}  # spacing of the values just below 1
LAYOUTS = ("dense", "slice", "transposed", "gaps")


def levels() -> list[str]:
    """Instruction levels to test, worst first; empty without native kernels."""
    found = native.module()
    return [] if found is None else list(found.levels())


@contextmanager
def level(name: str) -> Iterator[Any]:
    """The native module at one level."""
    found = native.module()
    assert found is not None
    before = found.level()
    found.set_level(name)
    try:
        yield found
    finally:
        found.set_level(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """The native pool with so many threads."""
    found = native.module()
    assert found is not None
    before = found.threads()
    found.set_threads(count)
    try:
        yield
    finally:
        found.set_threads(before)


def array(values: np.ndarray, dtype: mx.Dtype = mx.float32, layout: str = "dense") -> mx.array:
    """The values as an array that lies in memory as `layout` says: the same shape, other strides."""
    values = values.astype(np.float32)
    if layout == "slice":  # rows with a gap between them
        wide = np.concatenate([np.full_like(values[..., :1], np.nan), values, np.full_like(values, np.nan)], axis=-1)
        return mx.array(wide).astype(dtype)[..., 1 : values.shape[-1] + 1]
    if layout == "transposed" and values.ndim > 2:  # the last axis stays whole
        return mx.array(np.ascontiguousarray(values.swapaxes(-2, -3))).astype(dtype).swapaxes(-2, -3)
    if layout == "gaps":  # the last axis has gaps
        return mx.array(np.repeat(values, 2, axis=-1)).astype(dtype)[..., ::2]
    return mx.array(values).astype(dtype)


def wide(x: mx.array) -> np.ndarray:
    """The values as float64."""
    return np.array(x.astype(mx.float32)).astype(np.float64)


def assert_near(found: mx.array, expected: np.ndarray, units: float = 4.0, scale: float = 1e-30) -> None:
    """Equal within so many units in the last place: of the value in the type of `found`, plus, in float32, of the largest value
    or of `scale`, which is that of the terms that cancel."""
    assert tuple(found.shape) == expected.shape
    got = wide(found)
    bound = units * (UNIT[found.dtype] * np.abs(expected) + UNIT[mx.float32] * max(scale, np.abs(expected).max(initial=0.0)))
    if found.dtype == mx.float16:
        bound = bound + 2.0**-24  # half of the smallest step
    excess = np.abs(got - expected) / bound
    assert np.isfinite(got).all()
    assert (excess <= 1).all(), f"{excess.max():.3g} times the bound; largest value {np.abs(expected).max():.3g}"


def gradients(f: Callable[..., mx.array], arguments: tuple[mx.array, ...], cotangent: np.ndarray) -> tuple[mx.array, ...]:
    """Gradients for all arguments where the output has this cotangent."""
    _, found = mx.vjp(f, list(arguments), [mx.array(cotangent.astype(np.float32)).astype(f(*arguments).dtype)])
    return tuple(found)


def difference(f: Callable[..., np.ndarray], arguments: tuple[np.ndarray, ...], cotangent: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same in float64 numpy, by the complex step: f must be analytic. Exact to rounding."""
    result = []
    for which, argument in enumerate(arguments):
        gradient = np.zeros(argument.shape)
        for place in np.ndindex(argument.shape):
            moved = argument.astype(np.complex128)
            moved[place] += 1e-30j
            inputs = [moved if i == which else a for i, a in enumerate(arguments)]
            gradient[place] = (np.imag(f(*inputs)) * cotangent).sum() / 1e-30
        result.append(gradient)
    return tuple(result)
