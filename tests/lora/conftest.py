"""Models for adapters: the embedded one in float32, in bfloat16 and quantized, and a small Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import random_models
from optiq.models import layers
from optiq.models.load import load_modules

TINY = Path(__file__).parents[2] / "examples" / "tiny-qwen3.5"


def tiny(bits: int | None, dtype: mx.Dtype) -> Any:
    """The embedded model, perhaps quantized after it was loaded."""
    model, _ = load_modules(TINY)
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, 64, bits, class_predicate=lambda _, layer: hasattr(layer, "to_quantized"))
        layers.use_kernels(model)
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="module", params=["float32", "float32-4bit", "bfloat16-4bit"])
def model(request: pytest.FixtureRequest) -> Any:
    dtype, _, bits = request.param.partition("-")
    return tiny(int(bits[0]) if bits else None, getattr(mx, dtype))


@pytest.fixture(scope="session")
def plain() -> Any:
    return tiny(None, mx.float32)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found, _ = load_modules(random_models.write(tmp_path_factory.mktemp("models") / "llama", "llama"))
    found.set_dtype(mx.float32)
    return found
