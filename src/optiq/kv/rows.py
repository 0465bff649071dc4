"""How one side of a cache, keys or values, keeps its packed tokens: rotated codes, affine codes, or as they are.

A kind of rows makes buffers [B, G, C, ...] for C tokens, stores vectors [B, G, L, D] into them and gives them back. It does
not know which tokens they are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol, cast

import mlx.core as mx

from optiq.errors import InputError, ModelError
from optiq.kernels import codebook, packed, rotation
from optiq.kernels.coded_attention import Coded
from optiq.kernels.packed import Form, Packed, Scaling
from optiq.kv.recipe import FULL, Recipe

Buffers = list[mx.array]


class Rows(Protocol):
    """One kind of rows."""

    def buffers(self, batch: int, groups: int, tokens: int) -> Buffers:
        """Zeros for so many tokens."""

    def store(self, buffers: Buffers, start: int, x: mx.array) -> Buffers:
        """x [B, G, L, D] into tokens [start, start + L) of buffers that belong to the caller and are used up."""

    def unpack(self, buffers: Buffers, dtype: mx.Dtype) -> mx.array:
        """The vectors [B, G, C, D]; keys without what was taken from all of them."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known about the vectors of a layer, each [G, D] float32 or None.

    Args:
        key_mean: taken from every key (exact: softmax does not see it); must not depend on the position.
        key_scale: t: keys are packed as k / t and queries multiplied by t (exact).
        value_mean: taken from values that are packed, and given back.
    """

    key_mean: mx.array | None = None
    key_scale: mx.array | None = None
    value_mean: mx.array | None = None

    def check(self, groups: int, width: int, value_width: int) -> None:
        """Raises InputError where the shapes are those of another model."""
        for name, last in (("key_mean", width), ("key_scale", width), ("value_mean", value_width)):
            found: mx.array | None = getattr(self, name)
            if found is not None and found.shape != (groups, last):
                told = f"{name} has shape {list(found.shape)}, expected {[groups, last]} (key/value heads, head width)"
                raise InputError(f"the statistics of a layer's cache are those of another model: {told}")


NONE = Statistics()


@dataclass(frozen=True, eq=False)
class Rotated:
    """Codes of a `Form`, one scale each."""

    form: Form
    width: int

    def buffers(self, batch: int, groups: int, tokens: int) -> Buffers:
        codes = mx.zeros((batch, groups, tokens, self.width * self.form.book.bits // 8), mx.uint8)
        return [codes, mx.zeros((batch, groups, tokens), mx.bfloat16)]

    def store(self, buffers: Buffers, start: int, x: mx.array) -> Buffers:
        mean = self.form.mean
        return list(packed.store(Packed(*buffers), start, x if mean is None else x - mean[:, None], self.form))

    def unpack(self, buffers: Buffers, dtype: mx.Dtype) -> mx.array:
        return packed.unpack(Packed(*buffers), self.form, dtype)


@dataclass(frozen=True)
class Affine:
    """MLX's affine codes along each vector; a width that no group divides is filled up with its last value."""

    bits: int
    group_size: int
    width: int
    dtype: mx.Dtype

    @property
    def stored(self) -> int:
        """The width with what fills it up."""
        return -(-self.width // self.group_size) * self.group_size

    def buffers(self, batch: int, groups: int, tokens: int) -> Buffers:
        shape = (batch, groups, tokens)
        codes = mx.zeros((*shape, self.stored * self.bits // 32), mx.uint32)
        return [codes, *(mx.zeros((*shape, self.stored // self.group_size), self.dtype) for _ in range(2))]

    def store(self, buffers: Buffers, start: int, x: mx.array) -> Buffers:
        if self.stored > self.width:
            x = mx.pad(x, [(0, 0)] * 3 + [(0, self.stored - self.width)], mode="edge")
        found = mx.quantize(x.astype(self.dtype), group_size=self.group_size, bits=self.bits)
        for buffer, part in zip(buffers, found, strict=True):
            buffer[:, :, start : start + x.shape[2]] = part
        return buffers

    def unpack(self, buffers: Buffers, dtype: mx.Dtype) -> mx.array:
        return self.coded(buffers).dense(dtype)

    def coded(self, buffers: Buffers) -> Coded:
        """The buffers as `kernels.coded_attention` takes them."""
        codes, scales, biases = buffers
        return Coded(codes, scales, biases, self.bits, self.group_size, self.width)


@dataclass(frozen=True)
class Plain:
    """The vectors themselves."""

    width: int
    dtype: mx.Dtype

    def buffers(self, batch: int, groups: int, tokens: int) -> Buffers:
        return [mx.zeros((batch, groups, tokens, self.width), self.dtype)]

    def store(self, buffers: Buffers, start: int, x: mx.array) -> Buffers:
        buffers[0][:, :, start : start + x.shape[2]] = x.astype(self.dtype)
        return buffers

    def unpack(self, buffers: Buffers, dtype: mx.Dtype) -> mx.array:
        return buffers[0].astype(dtype)


def key_rows(recipe: Recipe, groups: int, width: int, dtype: mx.Dtype, known: Statistics = NONE) -> Rows:
    """How a recipe keeps keys of `groups` heads and this width."""
    return _rows(recipe, recipe.k_bits, recipe.seed, groups, width, dtype, known.key_scale, None)


def value_rows(recipe: Recipe, groups: int, width: int, dtype: mx.Dtype, known: Statistics = NONE) -> Rows:
    """How a recipe keeps values."""
    return _rows(recipe, recipe.v_bits, recipe.seed + 1, groups, width, dtype, None, known.value_mean)


def _rows(
    recipe: Recipe,
    bits: int,
    seed: int,
    groups: int,
    width: int,
    dtype: mx.Dtype,
    scale: mx.array | None,
    mean: mx.array | None,
) -> Rows:
    if bits == FULL:
        return Plain(width, dtype)
    if recipe.scheme == "affine":
        fits = width % recipe.group_size == 0
        return Affine(bits, recipe.group_size if fits else 32, width, dtype)
    if width % 8:
        raise ModelError(f"heads of width {width} cannot be rotated and packed, expected a multiple of 8; use --kv-scheme affine")
    if scale is None and mean is None:
        return Rotated(_plain_form(recipe, bits, seed, groups, width), width)
    return Rotated(_form(recipe, bits, seed, groups, width, scale, mean), width)


@functools.lru_cache(maxsize=64)
def _plain_form(recipe: Recipe, bits: int, seed: int, groups: int, width: int) -> Form:
    """One object for all layers of a shape: its arrays are held once."""
    return _form(recipe, bits, seed, groups, width, None, None)


def _form(
    recipe: Recipe,
    bits: int,
    seed: int,
    groups: int,
    width: int,
    scale: mx.array | None,
    mean: mx.array | None,
) -> Form:
    lloyd = recipe.codebook == "lloyd" and bits in codebook.LLOYD_BITS
    book = codebook.lloyd(bits) if lloyd else codebook.uniform(bits)
    signs = mx.contiguous(mx.broadcast_to(rotation.signs(width, seed), (groups, width)))
    diagonal, undo = (signs, signs) if scale is None else (signs / scale, signs * scale)
    mx.eval(diagonal, undo)  # constants: not to be recomputed with every graph that holds them
    return Form(book, diagonal, undo, cast(Scaling, recipe.scaling), mean)
