"""The seam between mlx-lm's layers and the kernels: one table of layer classes and the forms that take their place.

`use_kernels` walks a loaded model and gives each layer whose class stands in `FORMS` a subclass of that class whose
`__call__` goes through `optiq.kernels`. State, parameter names and `isinstance` stay as they were, so whatever knows the
stock layer (saving, quantizing, adapters) knows ours. Classes outside the model are not touched. Layers that a form cannot
compute (another quantization mode, a convolution that is not short) keep the stock class.

Attention, the gated delta rule and the activations are functions, not layers: see `optiq.models.arch`.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from optiq.kernels import fused, gated_delta, gates, memory, native, norm, short_conv
from optiq.kernels.dense import dense, gather_mm
from optiq.kernels.embedding import embedding
from optiq.kernels.quantized import dequantize_rows, gather_qmm, quantized_matmul
from optiq.kernels.rotary import rope
from optiq.models import adapted, arch, rollback, segments, steps
from optiq.models.forms import formed


class QuantizedLinear:
    """`nn.QuantizedLinear` in affine mode."""

    @staticmethod
    def fits(layer: Any) -> bool:
        """Whether this form computes the layer."""
        return layer.mode == "affine"

    def __call__(self: Any, x: mx.array) -> mx.array:
        y = quantized_matmul(x, self["weight"], self["scales"], self["biases"], group_size=self.group_size, bits=self.bits)
        return y + self["bias"] if "bias" in self else y


class QuantizedEmbedding:
    """`nn.QuantizedEmbedding` in affine mode; the head of a tied model is its `as_linear`."""

    fits = QuantizedLinear.fits

    def __call__(self: Any, x: mx.array) -> mx.array:
        """Token ids [...] to vectors [..., E]."""
        return dequantize_rows(x, self["weight"], self["scales"], self["biases"], group_size=self.group_size, bits=self.bits)

    def as_linear(self: Any, x: mx.array) -> mx.array:
        """x [..., E] to logits [..., V]."""
        return quantized_matmul(x, self["weight"], self["scales"], self["biases"], group_size=self.group_size, bits=self.bits)


class Linear:
    """`nn.Linear`."""

    @staticmethod
    def fits(layer: Any) -> bool:
        """Always."""
        return True

    def __call__(self: Any, x: mx.array) -> mx.array:
        y = dense(x, self["weight"])
        return y + self["bias"] if "bias" in self else y


class Embedding:
    """`nn.Embedding`, with a derivative that adds up in a fixed order."""

    fits = Linear.fits

    def __call__(self: Any, x: mx.array) -> mx.array:
        """Token ids [...] to vectors [..., E]."""
        return embedding(self["weight"], x)

    def as_linear(self: Any, x: mx.array) -> mx.array:
        """x [..., E] to logits [..., V]."""
        return dense(x, self["weight"])


class QuantizedSwitchLinear:
    """mlx-lm's bank of quantized experts, in affine mode."""

    fits = QuantizedLinear.fits

    def __call__(self: Any, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y = gather_qmm(x, self["weight"], self["scales"], self["biases"], indices, group_size=self.group_size, bits=self.bits)
        return y + mx.expand_dims(self["bias"][indices], -2) if "bias" in self else y


class SwitchLinear:
    """mlx-lm's bank of experts, for inference: the native form has no derivative by the weights."""

    fits = Linear.fits

    def __call__(self: Any, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        if self.training:
            return super().__call__(x, indices, sorted_indices)  # type: ignore[misc]
        y = gather_mm(x, self["weight"], indices)
        return y + mx.expand_dims(self["bias"][indices], -2) if "bias" in self else y


class RMSNorm:
    """`nn.RMSNorm`."""

    fits = Linear.fits

    def __call__(self: Any, x: mx.array) -> mx.array:
        return norm.rms_norm(x, self["weight"], self.eps)


class RoPE:
    """`nn.RoPE`."""

    fits = Linear.fits

    def __call__(self: Any, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """x [B, ..., L, D]."""
        return rope(x, self.dims, traditional=self.traditional, base=self.base, scale=self.scale, offset=offset)


class Convolution:
    """A depthwise `nn.Conv1d` of a few taps, as recurrent layers have."""

    fits = staticmethod(short_conv.replaceable)

    def __call__(self: Any, x: mx.array) -> mx.array:
        """x [B, L + K - 1, C]."""
        y = short_conv.short_conv(x, self["weight"])
        return y + self["bias"] if "bias" in self else y


class GatedMLP:
    """A SiLU-gated MLP of three quantized projections without biases: one operation for the few rows of a decoding step."""

    @staticmethod
    def fits(layer: Any) -> bool:
        """Whether this form computes the layer."""
        return all(_codes_alone(layer.get(name)) for name in ("gate_proj", "up_proj", "down_proj"))

    def __call__(self: Any, x: mx.array) -> mx.array:
        """x [B, L, E]; in a batch that adapters change in some rows, the others keep the bits of the one operation."""
        parts = [self[name] for name in ("gate_proj", "up_proj", "down_proj")]
        if prod(x.shape[:-1]) > fused.FEW_ROWS or not all(_codes_alone(part, adapted.plain_class(part)) for part in parts):
            return super().__call__(x)  # type: ignore[misc]
        rows = adapted.touched(parts)
        if len(rows) == x.shape[0]:
            return super().__call__(x)  # type: ignore[misc]
        y = fused.mlp(x, *map(weight, parts))
        if rows:
            at = mx.array(rows)
            y[at] = super().__call__(x)[at]  # type: ignore[misc]
        return y


class GatedDeltaNet:
    """Qwen3.5's linear-attention layer: its projections as one product, all between them as one mixer."""

    @staticmethod
    def fits(layer: Any) -> bool:
        """Whether this form computes the layer."""
        return layer.sharding_group is None and layer.conv_kernel_size <= 8 and layer.norm.weight.shape == (layer.head_v_dim,)

    def __call__(self: Any, inputs: mx.array, mask: mx.array | None = None, cache: Any = None) -> mx.array:
        """inputs [B, L, E], mask [B, L] bool, mlx-lm's ArraysCache of two; the layer's output [B, L, E]."""
        qkv, z, a, b = projections(inputs, [self[name] for name in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b")])
        tail, state, lengths = (None, None, None) if cache is None else (cache[0], cache[1], cache.lengths)
        parts = mixer_parts(self)
        borders = segments.borders(inputs.shape[1]) if cache is None else None
        if borders is not None:
            pieces = zip(*(segments.cut(x, borders, 1) for x in (qkv, z, a, b)), strict=True)
            return self.out_proj(mx.concatenate([gated_delta.mixer(*piece, **parts)[0] for piece in pieces], axis=1))
        y, new_tail, new_state = gated_delta.mixer(qkv, z, a, b, **parts, tail=tail, state=state, mask=mask, ends=lengths)
        if cache is not None:
            record = rollback.record_of(cache)
            if record is not None and mask is None:
                record.fill(partial(gated_delta.advance, qkv, a, b, **parts, tail=tail, state=state))
            else:
                cache[0], cache[1] = new_tail, new_state
                cache.advance(inputs.shape[1])
        return self.out_proj(y)


class GatedAttention:
    """Qwen3.5's full-attention layer: the stock code with its three input projections as one product."""

    @staticmethod
    def fits(layer: Any) -> bool:
        """Whether this form computes the layer."""
        return all(_codes_alone(layer.get(name)) for name in ("q_proj", "k_proj", "v_proj"))

    def __call__(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """x [B, L, E], a mask as mlx-lm makes it, its cache; the layer's output [B, L, E]."""
        B, L, _ = x.shape
        G, D = self.num_key_value_heads, self.head_dim
        both, keys, values = projections(x, [self[name] for name in ("q_proj", "k_proj", "v_proj")])
        queries, gate = mx.split(both.reshape(B, L, self.num_attention_heads, 2 * D), 2, axis=-1)
        queries = self.q_norm(queries).transpose(0, 2, 1, 3)
        keys = self.k_norm(keys.reshape(B, L, G, D)).transpose(0, 2, 1, 3)
        values = values.reshape(B, L, G, D).transpose(0, 2, 1, 3)
        offset = 0 if cache is None else cache.offset
        queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        y = _attend(queries, keys, values, mask=mask, cache=cache, scale=self.scale)
        y = y.transpose(0, 2, 1, 3).reshape(B, L, -1)
        return self.o_proj(gates.sigmoid_gate(y, gate.reshape(B, L, -1)))


class DecoderLayer:
    """Qwen3.5's block: one or two operations for the few rows of a decoding step; else the stock code with the first residual
    and the second norm as one operation."""

    fits = Linear.fits

    def __call__(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """x [B, L, E]; the block's output [B, L, E]."""
        if prod(x.shape[:-1]) <= fused.FEW_ROWS:
            y = DecoderLayer._step(self, x, mask, cache)
            if y is not None:
                return y
        mixer = self.linear_attn if self.is_linear else self.self_attn
        second = self.post_attention_layernorm
        h, normed = norm.add_rms_norm(x, mixer(self.input_layernorm(x), mask, cache), second["weight"], second.eps)
        return h + self.mlp(normed)

    def _step(self: Any, x: mx.array, mask: Any, cache: Any) -> mx.array | None:
        if self.is_linear:
            return steps.linear(self, x, cache, _codes_alone, mixer_parts) if mask is None else None
        return steps.attention(self, x, cache, _codes_alone, partial(_attend, mask=mask, cache=cache, scale=self.self_attn.scale))


def mixer_parts(layer: Any) -> dict[str, Any]:
    """The weights and numbers of a Gated DeltaNet layer, as `gated_delta.mixer` names them."""
    return {
        "taps": layer.conv1d.weight,
        "a_log": layer.A_log,
        "dt_bias": layer.dt_bias,
        "norm": layer.norm.weight,
        "key_heads": layer.num_k_heads,
        "key_dim": layer.head_k_dim,
        "eps": layer.layer_norm_epsilon,
    }


def _attend(q: mx.array, k: mx.array, v: mx.array, *, mask: Any, cache: Any, scale: float) -> mx.array:
    """The attention of mlx-lm's layers between their projections: the cache takes keys and values in."""
    if cache is not None:
        k, v = cache.update_and_fetch(k, v)
    y: mx.array = arch.shared("base").scaled_dot_product_attention(q, k, v, cache=cache, scale=scale, mask=mask)
    return y


def projections(x: mx.array, layers: list[Any]) -> list[mx.array]:
    """x [..., I] through several linear layers: as one product where they are plain codes, else one by one."""
    if prod(x.shape[:-1]) <= fused.FEW_ROWS and all(map(_codes_alone, layers)):
        return fused.project(x, [weight(layer) for layer in layers])
    return [layer(x) for layer in layers]


def weight(layer: nn.QuantizedLinear) -> fused.Weight:
    """The arrays and numbers of an affine quantized layer, as the kernels take them."""
    return layer["weight"], layer["scales"], layer["biases"], layer.group_size, layer.bits


def _codes_alone(layer: Any, kind: type | None = None) -> bool:
    """A quantized projection in affine mode without a bias, and nothing around it (an adapter, say).

    Args:
        layer: any module, or None.
        kind: what counts as its class; None is what it has.
    """
    return (type(layer) if kind is None else kind) in (nn.QuantizedLinear, formed(nn.QuantizedLinear, QuantizedLinear)) and (
        layer.mode == "affine" and "bias" not in layer
    )


# Qualified name of a stock class (alias package included) -> the form that takes its place.
FORMS: dict[str, type] = {
    "mlx.nn.layers.linear.Linear": Linear,
    "mlx.nn.layers.embedding.Embedding": Embedding,
    "mlx.nn.layers.normalization.RMSNorm": RMSNorm,
    "mlx.nn.layers.positional_encoding.RoPE": RoPE,
    "mlx.nn.layers.convolution.Conv1d": Convolution,
    "mlx.nn.layers.quantized.QuantizedLinear": QuantizedLinear,
    "mlx.nn.layers.quantized.QuantizedEmbedding": QuantizedEmbedding,
    "optiq_arch.switch_layers.QuantizedSwitchLinear": QuantizedSwitchLinear,
    "optiq_arch.switch_layers.SwitchLinear": SwitchLinear,
    "optiq_arch.qwen3_next.Qwen3NextMLP": GatedMLP,
    "optiq_arch.qwen3_next.Qwen3NextAttention": GatedAttention,
    "optiq_arch.qwen3_5.GatedDeltaNet": GatedDeltaNet,
    "optiq_arch.qwen3_5.DecoderLayer": DecoderLayer,
}


# Forms that are faster than the stock class even by their definitions, on every device.
PLAIN_FORMS: dict[str, type] = {"mlx.nn.layers.convolution.Conv1d": Convolution}


def use_kernels(model: nn.Module, forms: dict[str, type] | None = None) -> nn.Module:
    """Give every layer that stands in a table its form, in place.

    Args:
        forms: qualified name of a stock class to the form that takes its place; None, for a model that will run many steps:
            `FORMS` where native kernels are in use, else nothing, and freed memory is kept for the next step.
    """
    if forms is None:
        if native.module() is None:
            return model
        memory.retain()
        _move_to_large_pages(model)
        forms = FORMS
    for layer in model.modules():
        form = forms.get(f"{type(layer).__module__}.{type(layer).__qualname__}")
        if form is not None and form.fits(layer):  # type: ignore[attr-defined]
            layer.__class__ = formed(type(layer), form)
    return model


def _move_to_large_pages(model: nn.Module) -> None:
    """Weights that are read once per token wait less for address translation there; the system may decline."""
    fast = native.module()
    assert fast is not None
    fast.collapse([value for _, value in tree_flatten(model.parameters())])
