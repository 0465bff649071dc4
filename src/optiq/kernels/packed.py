"""Vectors as rotated codes with one scale each, and attention over keys and values that are stored so.

A vector x [D] becomes y = H (d * x) (`kernels.rotation`; the diagonal d holds random signs, and what else is folded into
it), and y becomes codes of a `Codebook` and one scale s in bfloat16:

    z = y / (r unit)    r = |y| / sqrt(D)       code_i = the level l nearest to z_i
    s = r unit                                  ``"norm"``: what TurboQuant stores
    s = y . l / l . l                           ``"fit"``: the least squared error, given the codes
    s = y . y / y . l                           ``"exact"``: y' . y = y . y, so that nothing is smaller on average than it was
    y' = s l

``"search"`` takes, of the codes for z / f with the factors f in `TRIALS`, those whose levels have the least angle to y, the first
of equals, and then the exact scale. Levels of the least squared error are short by that error: scores of packed keys would be
lower than those of full-precision ones beside them, and sums of values short.

Codes are a little-endian bit stream, `bits` each without gaps: D bits / 8 bytes. Attention needs no inverse for keys, since
(H d_q q) . y' is the score where d_q d = 1, and one for the sum of the values:

    s_j = scale (H (d_q q)) . k'_j              out = (sum_j w_j full v_j) + d_v^-1 H (sum_j w_j v'_j) + (sum_packed w_j) mean_v

with one softmax over packed and full-precision keys. Keys may have had any constant vector taken away, as long as it is
the same one for all: softmax does not see it.

Shapes: B, L tokens in this step, H query heads over G key/value heads, P packed tokens, F full-precision tokens, D.
Native forms: native/kernels/packed.h; Metal: `kernels.packed_metal`. Native packing follows the definition up to float32 rounding
(a coordinate that lies on a bound may take either neighbour), attention up to the error that packed.h states.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import numpy as np

from optiq.kernels import native, packed_metal, rotation
from optiq.kernels.attention import FEW_QUERIES, attention
from optiq.kernels.codebook import Codebook

Scaling = Literal["norm", "fit", "exact", "search"]

TRIALS = (1.0, 0.9, 1.1)
"""Factors of the step. On the attention layers of the embedded model KL falls by a sixth against the first alone; ten factors
between 0.75 and 1.25 gain another tenth. (kTrials in native/kernels/packed.h)"""

_TYPES = (mx.float32, mx.float16, mx.bfloat16)
_WIDEST = 512  # kPackedWidth in native/kernels/packed.h


class Packed(NamedTuple):
    """Packed vectors: codes uint8 [..., D bits / 8] and scales bfloat16 [...]."""

    codes: mx.array
    scales: mx.array


class _Factors(NamedTuple):
    diagonal: mx.array
    undo: mx.array
    inverse: mx.array
    mean: mx.array | None


@dataclass(frozen=True, eq=False)
class Form:
    """How vectors of one kind (the keys or the values of a layer) are packed.

    Args:
        book: levels.
        diagonal: [G, D] float32, multiplied before the transform.
        undo: [G, D] float32: of queries 1 / diagonal times signs for keys (so that scores stay), 1 / diagonal for values.
        scaling: how codes and the scale that is stored are found.
        mean: [G, D] float32 that is added to unpacked values; None for zero. Only values: keys need none.
    """

    book: Codebook
    diagonal: mx.array
    undo: mx.array
    scaling: Scaling
    mean: mx.array | None = None

    @cached_property
    def native_book(self) -> Any:
        """The codebook as native kernels take it."""
        fast = native.module()
        assert fast is not None
        return fast.codebook(self.book.bits, self.book.levels, self.book.unit)

    @cached_property
    def factors(self) -> _Factors:
        """The arrays as native kernels read them at once: float32 without gaps."""
        diagonal, undo, inverse = (mx.contiguous(x.astype(mx.float32)) for x in (self.diagonal, self.undo, 1.0 / self.diagonal))
        mean = None if self.mean is None else mx.contiguous(self.mean.astype(mx.float32))
        mx.eval(diagonal, undo, inverse, [] if mean is None else mean)
        return _Factors(diagonal, undo, inverse, mean)


def packed_bytes(width: int, bits: int) -> int:
    """Bytes of one packed vector, its scale included."""
    return width * bits // 8 + 2


def pack(x: mx.array, form: Form) -> Packed:
    """Pack vectors x [B, G, L, D] of any float type: codes uint8 [B, G, L, D bits / 8], scales bfloat16 [B, G, L]."""
    fast = _native(x)
    if fast is None:
        return pack_reference(x, form)
    return Packed(*fast.pack(x, form.factors.diagonal, form.native_book, form.scaling))


def store(buffer: Packed, start: int, x: mx.array, form: Form) -> Packed:
    """Pack x [B, G, L, D] into tokens [start, start + L) of a buffer of codes [B, G, C, ...] and scales [B, G, C].

    The buffer belongs to the caller alone and is used up: native kernels write where it lies.
    """
    fast = _native(x)
    if fast is None:
        found, end = pack(x, form), start + x.shape[2]
        codes, scales = buffer
        codes[:, :, start:end], scales[:, :, start:end] = found
        return Packed(codes, scales)
    return Packed(*fast.store(*buffer, x, form.factors.diagonal, start, form.native_book, form.scaling))


def unpack(packed: Packed, form: Form, dtype: mx.Dtype = mx.float32) -> mx.array:
    """The vectors [B, G, P, D] themselves; values with their mean, keys without."""
    fast = _native(form.diagonal)
    if fast is None or dtype not in _TYPES or not packed.scales.size:
        return unpack_reference(packed, form, dtype)
    found: mx.array = fast.unpack(*packed, form.factors.inverse, form.native_book, form.factors.mean, None, dtype)
    return found


def attend(
    q: mx.array,
    keys: Packed,
    values: Packed,
    k: mx.array,
    v: mx.array,
    key_form: Form,
    value_form: Form,
    *,
    scale: float,
    starts: mx.array | None = None,
    mask: mx.array | None = None,
) -> mx.array:
    """Attention over packed tokens, then full-precision ones; arguments and result as `attend_reference`.

    Up to `FEW_QUERIES` queries a native or Metal kernel computes with the codes themselves; the native one gives a row the same
    bits whatever else is in the batch. More queries meet unpacked keys and values in the type of q, of this one layer and for
    this one call.
    """
    fast = _native(q)
    if mask is not None and mask.dtype != mx.bool_:
        return attend_reference(q, keys, values, k, v, key_form, value_form, scale=scale, starts=starts, mask=mask)
    if q.shape[2] > FEW_QUERIES:
        if mask is None and starts is not None:
            mask = seen(q.shape[0], q.shape[2], keys.scales.shape[2], k.shape[2], starts)
        k, v = _followed(keys, key_form, k, q.dtype), _followed(values, value_form, v, q.dtype)
        return attention(q, k, v, scale=scale, mask="causal" if mask is None else mask)
    if fast is None:
        if packed_metal.usable(q, k, mask):
            return packed_metal.attend(q, keys, values, k, v, key_form, value_form, scale=scale, starts=starts)
        return attend_reference(q, keys, values, k, v, key_form, value_form, scale=scale, starts=starts, mask=mask)
    k, v = (x if x.dtype == q.dtype else x.astype(q.dtype) for x in (k, v))
    ours, theirs = key_form.factors, value_form.factors
    books = key_form.native_book, value_form.native_book
    found: mx.array = fast.attend(q, k, v, keys, values, ours.undo, theirs.undo, *books, scale, theirs.mean, starts, mask)
    return found


def _followed(packed: Packed, form: Form, tail: mx.array, dtype: mx.Dtype) -> mx.array:
    """The vectors as attention sees them, [B, G, P, D], and the tail behind them."""
    fast = _native(tail)
    if fast is not None:
        factors = form.factors
        both: mx.array = fast.unpack(*packed, factors.undo, form.native_book, factors.mean, tail.astype(dtype), dtype)
        return both
    return mx.concatenate([_turned_back(packed, form, form.undo, dtype), tail.astype(dtype)], 2)


def _native(x: mx.array) -> Any:
    """The extension where it is in use and takes vectors such as x."""
    width = x.shape[-1]
    return native.module() if x.dtype in _TYPES and width <= _WIDEST and width % 8 == 0 and x.size else None


def pack_reference(x: mx.array, form: Form) -> Packed:
    """The definition of packing.

    Args:
        x: [B, G, L, D], any float type; a mean has been taken away already.

    Returns:
        Codes uint8 [B, G, L, D bits / 8] and scales bfloat16 [B, G, L]; a vector of zeros has scale 0.
    """
    book, width = form.book, x.shape[-1]
    y = rotation.transform(x.astype(mx.float32) * form.diagonal[:, None])
    step = mx.sqrt((y * y).sum(-1, keepdims=True) / width) * book.unit
    index = _nearest(y, step, book)
    if form.scaling == "search":
        best = _cosine(y, index, book)
        for factor in TRIALS[1:]:
            other = _nearest(y, step * factor, book)
            better = _cosine(y, other, book)
            index, best = mx.where(better > best, other, index), mx.maximum(better, best)
    if form.scaling != "norm":
        level = mx.array(book.levels, mx.float32)[index]
        across = (y * level).sum(-1, keepdims=True)
        fit = across / (level * level).sum(-1, keepdims=True)
        exact = (y * y).sum(-1, keepdims=True) / mx.where(step > 0, across, 1.0)
        step = mx.where(step > 0, fit if form.scaling == "fit" else exact, 0.0)
    return Packed(pack_bits(index, book.bits), step[..., 0].astype(mx.bfloat16))


def _nearest(y: mx.array, step: mx.array, book: Codebook) -> mx.array:
    """Codes of y [..., D] in steps [..., 1]."""
    z = y / mx.where(step > 0, step, 1.0)
    index = mx.zeros(z.shape, mx.uint8)
    for bound in book.bounds:
        index = index + (z > bound)
    return index


def _cosine(y: mx.array, index: mx.array, book: Codebook) -> mx.array:
    """Of y and the levels of codes, times the length of y; [..., 1]."""
    level = mx.array(book.levels, mx.float32)[index]
    return (y * level).sum(-1, keepdims=True) / mx.sqrt((level * level).sum(-1, keepdims=True))


def unpack_rotated(packed: Packed, book: Codebook) -> mx.array:
    """y' [..., D] float32, still rotated."""
    level = mx.array(book.levels, mx.float32)[unpack_bits(packed.codes, book.bits)]
    return level * packed.scales.astype(mx.float32)[..., None]


def unpack_reference(packed: Packed, form: Form, dtype: mx.Dtype = mx.float32) -> mx.array:
    """The definition of unpacking: the vectors [B, G, P, D] themselves; values with their mean, keys without."""
    return _turned_back(packed, form, 1.0 / form.diagonal, dtype)


def _turned_back(packed: Packed, form: Form, factor: mx.array, dtype: mx.Dtype) -> mx.array:
    """factor H y' and the mean, factor [G, D]."""
    x = rotation.transform(unpack_rotated(packed, form.book)) * factor[:, None]
    return (x if form.mean is None else x + form.mean[:, None]).astype(dtype)


def attend_reference(
    q: mx.array,
    keys: Packed,
    values: Packed,
    k: mx.array,
    v: mx.array,
    key_form: Form,
    value_form: Form,
    *,
    scale: float,
    starts: mx.array | None = None,
    mask: mx.array | None = None,
) -> mx.array:
    """The definition of attention over packed tokens, then full-precision ones.

    Args:
        q: [B, H, L, D].
        keys, values: of P packed tokens, [B, G, P, ...]; every query sees them from `starts` on.
        k, v: [B, G, F, D]: of full-precision tokens. The last query stands at the last of them; F >= L.
        starts: int32 [B], the first packed token that a row sees (rows of different lengths end together); None for 0.
        mask: boolean, broadcasts to [B, H, L, P + F], of what each query sees of all; None for `starts` and causal.

    Returns:
        [B, H, L, D] in the type of q.
    """
    batch, heads, length, width = q.shape
    groups, old, new = k.shape[1], keys.scales.shape[2], k.shape[2]
    wide = q.astype(mx.float32).reshape(batch, groups, heads // groups, length, width)
    rotated = rotation.transform(wide * key_form.undo[:, None, None])
    left = rotated @ mx.swapaxes(unpack_rotated(keys, key_form.book), 2, 3)[:, :, None]
    right = wide @ mx.swapaxes(k.astype(mx.float32), 2, 3)[:, :, None]
    scores = (mx.concatenate([left, right], -1) * scale).reshape(batch, heads, length, old + new)
    if mask is None:
        mask = seen(batch, length, old, new, starts)
    weights = mx.softmax(mx.where(mask, scores, -mx.inf), -1).reshape(batch, groups, heads // groups, length, old + new)
    ours, theirs = weights[..., :old], weights[..., old:]
    packed = rotation.transform(ours @ unpack_rotated(values, value_form.book)[:, :, None]) * value_form.undo[:, None, None]
    if value_form.mean is not None:
        packed = packed + ours.sum(-1, keepdims=True) * value_form.mean[:, None, None]
    out = packed + theirs @ v.astype(mx.float32)[:, :, None]
    return out.reshape(batch, heads, length, width).astype(q.dtype)


def seen(batch: int, length: int, old: int, new: int, starts: mx.array | None = None) -> mx.array:
    """Boolean [B, 1, L, P + F]: packed tokens from each row's start on, full-precision tokens up to the query's own place."""
    position = mx.arange(old + new)
    causal = position[None] <= mx.arange(old + new - length, old + new)[:, None]
    first = mx.zeros((batch,), mx.int32) if starts is None else starts
    allowed: mx.array = causal[None, None] & ((position[None] >= first[:, None]) | (position[None] >= old))[:, None, None]
    return allowed


def pack_bits(index: mx.array, bits: int) -> mx.array:
    """Codes uint8 [..., D] below 2^bits as a little-endian bit stream, uint8 [..., D bits / 8]; D a multiple of 8."""
    rows, width = index.shape[:-1], index.shape[-1]
    groups = index.reshape(*rows, width // 8, 8).astype(mx.uint64)
    word = (groups << mx.array(np.arange(8) * bits, mx.uint64)).sum(-1)
    parts = (word[..., None] >> mx.array(np.arange(bits) * 8, mx.uint64)) & 255
    return parts.astype(mx.uint8).reshape(*rows, width * bits // 8)


def unpack_bits(codes: mx.array, bits: int) -> mx.array:
    """The inverse of `pack_bits`."""
    rows, groups = codes.shape[:-1], codes.shape[-1] // bits
    parts = codes.reshape(*rows, groups, bits).astype(mx.uint64)
    word = (parts << mx.array(np.arange(bits) * 8, mx.uint64)).sum(-1)
    index: mx.array = (word[..., None] >> mx.array(np.arange(8) * bits, mx.uint64)) & (2**bits - 1)
    return index.astype(mx.uint8).reshape(*rows, groups * 8)
