"""The embedded model for tests of the engine, and adapters for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from adapter_files import paths, write_mlx, write_peft
from optiq.models.load import load


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Any:
    model, tokenizer = load(tiny_model)
    model.set_dtype(mx.float32)
    return model, tokenizer


@pytest.fixture(scope="module")
def adapters(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Names and directories of one adapter of each format."""
    root, model = tmp_path_factory.mktemp("adapters"), loaded[0]
    write_peft(root / "peft", model, paths(model, "q_proj", "in_proj_qkv", "down_proj"), seed=1)
    write_mlx(root / "mlx", model, paths(model, "o_proj", "v_proj", "out_proj"), seed=2)
    return {name: root / name for name in ("peft", "mlx")}
