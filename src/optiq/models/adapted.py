"""Layers whose output is changed in some rows of a batch, for the length of one forward.

`changing` gives layers a subclass of their class, and each a `Change` that is called with what goes in and what comes out;
afterwards they are what they were, bit for bit and object for object. So a forward without changes finds the plain classes, and
with them the fast forms of whole blocks (`optiq.models.layers`, `optiq.models.steps`). Forms that compute several layers at once
ask `touched` which rows they may not take on.

Knows which rows; what is done to them comes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from optiq.models import arch
from optiq.models.forms import forming


class Change(Protocol):
    """What is done to the output of one layer."""

    @property
    def rows(self) -> Sequence[int]:
        """Those of the batch that it changes, in rising order; the others come back with the bits that they had."""
        ...

    def __call__(self, layer: Any, x: mx.array, y: mx.array, *rest: Any) -> mx.array:
        """From what goes in, [B, L, I] and the call's other arguments, and what came out, [B, L, O], to what shall come out."""
        ...


class Changed:
    """The form of such a layer."""

    def __call__(self: Any, x: mx.array, *rest: Any, **named: Any) -> mx.array:
        return self.__dict__["_change"](self, x, super().__call__(x, *rest, **named), *rest)  # type: ignore[misc]


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be changed, by their paths."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.QuantizedLinear))}


def expert_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The banks of experts that stand in one of mlx-lm's gated or plain MLPs of experts, by their paths."""
    shared = arch.shared("switch_layers")
    owners = {path: module for path, module in model.named_modules() if isinstance(module, (shared.SwitchGLU, shared.SwitchMLP))}
    kinds = (shared.SwitchLinear, shared.QuantizedSwitchLinear)
    return {f"{path}.{name}": bank for path, owner in owners.items() for name, bank in owner.items() if isinstance(bank, kinds)}


def weight_shape(layer: Any) -> tuple[int, ...]:
    """O and I of a linear layer, E, O and I of a bank of experts, plain or quantized."""
    *lead, width = layer["weight"].shape
    return *lead, width * 32 // layer.bits if "scales" in layer else width


def dense_weight(layer: Any) -> mx.array:
    """The weight of a linear layer or a bank of experts, plain or quantized, as float32 values [O, I] or [E, O, I]."""
    if "scales" not in layer:
        return layer["weight"].astype(mx.float32)
    values = mx.dequantize(
        layer["weight"], layer["scales"], layer.get("biases"), group_size=layer.group_size, bits=layer.bits, mode=layer.mode
    )
    return values.astype(mx.float32)


def changing(changes: Iterable[tuple[nn.Module, Change]]) -> AbstractContextManager[None]:
    """Change layers while the context lasts; it is enough that the forward is built in it, not that it is computed.

    Args:
        changes: each layer once.
    """
    return forming(changes, Changed, "_change")


def touched(layers: Iterable[Any]) -> list[int]:
    """The rows of the batch that are changed in any of some layers, in rising order."""
    return sorted({row for layer in layers if "_change" in layer.__dict__ for row in layer.__dict__["_change"].rows})


def plain_class(layer: Any) -> type:
    """The layer's class where nothing is changed."""
    kind = type(layer)
    return kind.__mro__[2] if issubclass(kind, Changed) else kind
