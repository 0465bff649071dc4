"""Models for adapters: the embedded one in float32, in bfloat16 and quantized, and a small Llama."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

import random_models
from optiq.models.load import load_modules
from tiny_model import tiny


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
