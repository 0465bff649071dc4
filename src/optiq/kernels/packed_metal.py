"""Attention over packed tokens on Metal, for the few queries of a decoding step.

The kernel (metal/packed_attend.metal) has the packed tokens, in parts; plain operations rotate the queries, attend to the
full-precision tokens and bring the parts together. Definition and shapes: `optiq.kernels.packed`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from optiq.kernels import rotation
from optiq.kernels.codebook import Codebook

if TYPE_CHECKING:
    from optiq.kernels.packed import Form, Packed

SOURCE = Path(__file__).parent / "metal" / "packed_attend.metal"
INPUTS = ("query", "key_codes", "key_scales", "value_codes", "value_scales", "key_levels", "value_levels", "starts")
OUTPUTS = ("sums", "most", "mass")

_LANES = 32
_TOKENS = 64  # of a part at least, so that a simdgroup has some work
_MOST_PARTS = 64

# query [B, H, L, D], keys, values, their codebooks, starts, parts -> sums [B, H, L, parts, D], most and mass [B, H, L, parts].
Launch = Callable[[mx.array, "Packed", "Packed", Codebook, Codebook, mx.array, int], tuple[mx.array, mx.array, mx.array]]


def usable(q: mx.array, k: mx.array, mask: mx.array | None) -> bool:
    """Whether the kernel can attend: MLX computes on Metal, no mask, a width of whole simdgroups."""
    return mask is None and q.shape[-1] % _LANES == 0 and k.shape[2] > 0 and mx.metal.is_available() and _on_gpu()


def _on_gpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.gpu))


def launch(
    query: mx.array, keys: Packed, values: Packed, key_book: Codebook, value_book: Codebook, starts: mx.array, parts: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Run the kernel; arguments as `Launch`."""
    batch, heads, length, width = query.shape
    levels = [mx.array(book.levels, mx.float32) for book in (key_book, value_book)]
    shape = (batch, heads, length, parts)
    sums, most, mass = _kernel()(
        inputs=[mx.contiguous(query), *keys, *values, *levels, mx.contiguous(starts)],
        template=[("D", width), ("KEY_BITS", key_book.bits), ("VALUE_BITS", value_book.bits)],
        grid=(_LANES, batch * heads * length, parts),
        threadgroup=(_LANES, 1, 1),
        output_shapes=[(*shape, width), shape, shape],
        output_dtypes=[mx.float32] * 3,
    )
    return sums, most, mass


@cache
def _kernel() -> Any:
    header, body = source()
    return mx.fast.metal_kernel(
        name="optiq_packed_attend",
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        source=body,
        header=header,
        ensure_row_contiguous=False,  # a cache is a slice of a longer buffer
    )


def source() -> tuple[str, str]:
    """The header and the body of the kernel."""
    header, _, body = SOURCE.read_text().partition("\n// body\n")
    return header, body


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
    run: Launch = launch,
) -> mx.array:
    """As `optiq.kernels.packed.attend` without a mask; `run` has the packed tokens."""
    batch, heads, length, width = q.shape
    groups, old, new = k.shape[1], keys.scales.shape[2], k.shape[2]
    wide = q.astype(mx.float32).reshape(batch, groups, heads // groups, length, width)
    query = rotation.transform(wide * key_form.undo[:, None, None]) * scale
    first = mx.zeros((batch,), mx.int32) if starts is None else starts.astype(mx.int32)
    parts = max(1, min(_MOST_PARTS, old // _TOKENS))
    found = run(query.reshape(q.shape), keys, values, key_form.book, value_form.book, first, parts)
    sums, most, mass = (x.reshape(*wide.shape[:4], *x.shape[3:]) for x in found)
    causal = mx.arange(new)[None] <= mx.arange(new - length, new)[:, None]
    right = mx.where(causal, (wide @ mx.swapaxes(k.astype(mx.float32), 2, 3)[:, :, None]) * scale, -mx.inf)
    top = mx.maximum(most.max(-1), right.max(-1))[..., None]
    share, weights = mx.exp(most - top), mx.exp(right - top)
    packed = rotation.transform((sums * share[..., None]).sum(-2)) * value_form.undo[:, None, None]
    total = (mass * share).sum(-1, keepdims=True)
    if value_form.mean is not None:
        packed = packed + total * value_form.mean[:, None, None]
    out = (packed + weights @ v.astype(mx.float32)[:, :, None]) / (total + weights.sum(-1, keepdims=True))
    return out.reshape(q.shape).astype(q.dtype)
