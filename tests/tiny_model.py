"""The embedded model as tests of layers want it: in a type, perhaps quantized; and a look at which of its layers ran whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from optiq.models import layers
from optiq.models.load import load_modules

TINY = Path(__file__).parents[1] / "examples" / "tiny-qwen3.5"


def tiny(bits: int | None, dtype: mx.Dtype) -> Any:
    """The embedded model, perhaps quantized after it was loaded."""
    model, _ = load_modules(TINY)
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, 64, bits, class_predicate=lambda _, layer: hasattr(layer, "to_quantized"))
        layers.use_kernels(model)
    mx.eval(model.parameters())
    return model


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list that grows by every call of a decoder layer: whether it went through a native layer."""
    found: list[bool] = []
    inner = layers.DecoderLayer._step

    def count(self: Any, *args: Any) -> Any:
        y = inner(self, *args)
        found.append(y is not None)
        return y

    monkeypatch.setattr(layers.DecoderLayer, "_step", count)
    return found
