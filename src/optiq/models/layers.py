"""The seam between mlx-lm's layers and the kernels: one table of layer classes and the forms that take their place.

`use_kernels` walks a loaded model and gives each layer whose class stands in `FORMS` a subclass of that class whose
`__call__` goes through `optiq.kernels`. State, parameter names and `isinstance` stay as they were, so whatever knows the
stock layer (saving, quantizing, adapters) knows ours. Classes outside the model are not touched. Layers that a form cannot
compute (another quantization mode, a convolution that is not short) keep the stock class.

Attention, the gated delta rule and the activations are functions, not layers: see `optiq.models.arch`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from optiq.kernels import native
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


# Qualified name of a stock class (alias package included) -> the form that takes its place.
FORMS: dict[str, type] = {
    "mlx.nn.layers.quantized.QuantizedLinear": QuantizedLinear,
    "mlx.nn.layers.quantized.QuantizedEmbedding": QuantizedEmbedding,
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
