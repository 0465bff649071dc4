"""The embedded model, loaded once, in float32 so that ties of 16-bit logits decide nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from optiq.models.load import load


@pytest.fixture(scope="session")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    """Model and tokenizer."""
    model, tokenizer = load(tiny_model)
    model.set_dtype(mx.float32)
    return model, tokenizer
