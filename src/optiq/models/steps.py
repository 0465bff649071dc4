"""Whole decoder layers for the few rows of a decoding step (native/mlx/step.cpp), built from a layer's own weights.

A native layer reads its weights outside of MLX's graph. It is built for the arrays that stand in the layer now, and again when
one of them, or the class of a projection, is another. What it cannot compute (an adapter, a bias, another quantization, a
derivative under way) it declines, and the caller goes on with the single operations, whose bits are the same.

Knows Qwen3.5's layers by the names of their parts; knows nothing of caches but mlx-lm's `ArraysCache`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import is_
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from optiq.kernels import gated_delta, native
from optiq.models import rollback

_MLP = ("gate_proj", "up_proj", "down_proj")
_LINEAR = ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class _Built:
    """A native layer, or None where there can be none, with what it was built from; a copy of the model starts anew."""

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.layer: Any = None

    def __deepcopy__(self, memo: Any) -> _Built:
        return _Built()

    def __reduce__(self) -> Any:
        return _Built, ()


def linear(
    layer: Any, x: mx.array, cache: Any, plain: Callable[[Any], bool], numbers: Callable[[Any], dict[str, Any]]
) -> mx.array | None:
    """A decoder layer of Gated DeltaNet.

    Args:
        layer: mlx-lm's `DecoderLayer`.
        x: [B, L, E].
        cache: its `ArraysCache`, which is moved on where the result is not None, or whose open record gets what would move it on.
        plain: whether a projection is plain affine codes.
        numbers: of the mixer, as `gated_delta.advance` takes them by name.

    Returns:
        The layer's output [B, L, E], or None.
    """
    if cache is None or cache.lengths is not None:
        return None
    fast, mixer = native.module(), layer["linear_attn"]
    if fast is None:
        return None
    arrays = [mixer["conv1d"]["weight"], mixer["A_log"], mixer["dt_bias"], mixer["norm"]["weight"]]

    def build(common: list[Any]) -> Any:
        return fast.linear_layer(*common, *arrays, mixer.num_k_heads, mixer.head_k_dim, mixer.layer_norm_epsilon)

    native_layer = _native(layer, mixer, _LINEAR, arrays, plain, build)
    if native_layer is None:
        return None
    record = rollback.record_of(cache)
    if record is not None:
        return _look(fast, native_layer, x, cache, record, numbers(mixer))
    if cache[0] is None or cache[1] is None:
        return None
    result = fast.run_linear_layer(native_layer, x, cache[0], cache[1])
    if result is None:
        return None
    y, cache[0], cache[1] = result
    cache.advance(x.shape[1])
    return y  # type: ignore[no-any-return]


def _look(
    fast: Any, native_layer: Any, x: mx.array, cache: Any, record: rollback.Record, numbers: dict[str, Any]
) -> mx.array | None:
    """The layer's output in a step that may be taken back; the cache catches up with an earlier one on the way."""
    late = rollback.take_late(cache)
    if late is not None:
        found = fast.look_linear_layer(native_layer, x, late.tail, late.state, [*late.inputs, late.counts])
        if found is None:
            cache.cache = list(late.advance())
            return None
        y, *kept, cache[0], cache[1] = found
    elif cache[0] is None or cache[1] is None:
        return None
    else:
        found = fast.look_linear_layer(native_layer, x, cache[0], cache[1], [])
        if found is None:
            return None
        y, *kept = found
    record.fill(partial(gated_delta.advance, *kept, **numbers, tail=cache[0], state=cache[1]), kept)
    return y  # type: ignore[no-any-return]


def attention(
    layer: Any, x: mx.array, cache: Any, plain: Callable[[Any], bool], attend: Callable[[Any, Any, Any], mx.array]
) -> mx.array | None:
    """A decoder layer of gated attention, as far as its rotary embedding is the plain one.

    Args:
        layer, x, plain: as `linear`.
        cache: any key/value cache, or None; only its offset is read here.
        attend: queries [B, H, L, D] and keys and values [B, G, L, D] of this step to [B, H, L, D]; moves the cache on.

    Returns:
        As `linear`; None only before `attend` was called.
    """
    fast, mixer = native.module(), layer["self_attn"]
    if fast is None:
        return None
    rope, q_norm, k_norm = mixer["rope"], mixer["q_norm"], mixer["k_norm"]
    arrays = [q_norm["weight"], k_norm["weight"]]

    def build(common: list[Any]) -> Any:
        if not isinstance(rope, nn.RoPE) or rope.traditional or q_norm.eps != k_norm.eps:
            return None
        return fast.attention_layer(*common, *arrays, q_norm.eps, rope.dims, rope.base, rope.scale)

    native_layer = _native(layer, mixer, _ATTENTION, [*arrays, type(rope)], plain, build)
    offset = 0 if cache is None else cache.offset
    heads = None if native_layer is None else fast.enter_attention(native_layer, x, offset)
    if heads is None:
        return None
    queries, keys, values, gate = heads
    o = attend(queries, keys, values).astype(x.dtype)
    (y,) = fast.leave_attention(native_layer, x, o, gate)
    return y  # type: ignore[no-any-return]


def _native(
    layer: Any,
    mixer: Any,
    names: tuple[str, ...],
    arrays: list[Any],
    plain: Callable[[Any], bool],
    build: Callable[[list[Any]], Any],
) -> Any:
    """The native layer for the weights that stand in `layer` now; None where there is none."""
    mlp, first, second = layer["mlp"], layer["input_layernorm"], layer["post_attention_layernorm"]
    projections = [mixer[name] for name in names] + [mlp.get(name) for name in _MLP]
    parts = [first["weight"], second["weight"], *arrays]
    for projection in projections:
        if not isinstance(projection, dict):
            return None  # a mixture of experts has no such projections
        parts += (projection.__class__, projection.get("weight"), projection.get("scales"), projection.get("biases"))
    built = layer.__dict__.get("_built_step")
    if built is None:
        built = _Built()
        object.__setattr__(layer, "_built_step", built)
    if len(parts) != len(built.parts) or not all(map(is_, parts, built.parts)):
        if not all(map(plain, projections)):
            return None  # what was built stays, for the steps in which no row has an adapter
        built.parts, built.layer = parts, None
        if first.eps == second.eps:
            weights = [(p["weight"], p["scales"], p["biases"], p.group_size, p.bits) for p in projections]
            block = [first["weight"], second["weight"], first.eps, weights[-3:]]
            built.layer = build([*block, weights[:-4], weights[-4]])
    return built.layer
