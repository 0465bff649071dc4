"""The seam between mlx-lm's layers and the kernels: one table of layer classes and the forms that take their place.

`use_kernels` walks a loaded model and gives each layer whose class stands in `FORMS` a subclass of that class whose
`__call__` goes through `optiq.kernels`. State, parameter names and `isinstance` stay as they were, so whatever knows the
stock layer (saving, quantizing, adapters) knows ours. Classes outside the model are not touched. Layers that a form cannot
compute (another quantization mode, a convolution that is not short) keep the stock class.

Attention, the gated delta rule and the activations are functions, not layers: see `optiq.models.arch`.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from optiq.kernels import fused, native
from optiq.kernels.quantized import quantized_matmul


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

    def as_linear(self: Any, x: mx.array) -> mx.array:
        """x [..., E] to logits [..., V]."""
        return quantized_matmul(x, self["weight"], self["scales"], self["biases"], group_size=self.group_size, bits=self.bits)


class GatedMLP:
    """A SiLU-gated MLP of three quantized projections without biases: one operation for the few rows of a decoding step."""

    @staticmethod
    def fits(layer: Any) -> bool:
        """Whether this form computes the layer."""
        return all(_codes_alone(layer.get(name)) for name in ("gate_proj", "up_proj", "down_proj"))

    def __call__(self: Any, x: mx.array) -> mx.array:
        if prod(x.shape[:-1]) > fused.FEW_ROWS or not GatedMLP.fits(self):
            return super().__call__(x)  # type: ignore[misc]
        return fused.mlp(x, *(weight(self[name]) for name in ("gate_proj", "up_proj", "down_proj")))


def weight(layer: nn.QuantizedLinear) -> fused.Weight:
    """The arrays and numbers of an affine quantized layer, as the kernels take them."""
    return layer["weight"], layer["scales"], layer["biases"], layer.group_size, layer.bits


def _codes_alone(layer: Any) -> bool:
    """A quantized projection in affine mode without a bias, and nothing around it (an adapter, say)."""
    return type(layer) in (nn.QuantizedLinear, _subclass(QuantizedLinear, nn.QuantizedLinear)) and (
        layer.mode == "affine" and "bias" not in layer
    )


# Qualified name of a stock class (alias package included) -> the form that takes its place.
FORMS: dict[str, type] = {
    "mlx.nn.layers.quantized.QuantizedLinear": QuantizedLinear,
    "mlx.nn.layers.quantized.QuantizedEmbedding": QuantizedEmbedding,
    "optiq_arch.qwen3_next.Qwen3NextMLP": GatedMLP,
}


def use_kernels(model: nn.Module) -> nn.Module:
    """Give every layer of `FORMS` its form, in place; does nothing where no native kernels are in use."""
    if native.module() is None:
        return model
    for layer in model.modules():
        form = FORMS.get(f"{type(layer).__module__}.{type(layer).__qualname__}")
        if form is not None and form.fits(layer):  # type: ignore[attr-defined]
            layer.__class__ = _subclass(form, type(layer))
    return model


@cache
def _subclass(form: type, base: type) -> type:
    return type(base.__name__, (form, base), {"__doc__": form.__doc__})
