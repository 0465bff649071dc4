"""A fused model computes what model and adapter compute, up to the codes."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

import random_models
from adapter_files import paths, write_peft
from lora_training import TINY
from optiq.errors import InputError
from optiq.lora.adapters import load_adapter
from optiq.lora.fuse import fuse
from optiq.lora.mounted import Mounted
from optiq.models.load import load_modules

TOKENS = mx.array([[5, 9, 77, 31, 8, 100, 3, 64] * 4])


@pytest.mark.parametrize("dora", [False, True])
def test_dense_models_fuse_up_to_rounding(tmp_path: Path, dora: bool) -> None:
    source = random_models.write(tmp_path / "model", "llama")
    model, _ = load_modules(source)
    write_peft(tmp_path / "a", model, paths(model, "q_proj", "down_proj"), use_dora=dora)
    adapter = load_adapter(tmp_path / "a", model)
    done = fuse(source, model, adapter, tmp_path / "fused")
    assert done.kl is None and done.layers == 6
    fused, _ = load_modules(tmp_path / "fused")
    for one in (model, fused):
        one.set_dtype(mx.float32)
    mounted = Mounted(model)
    mounted.mount("x", adapter)
    with mounted.rows(["x"]):
        wanted = model(TOKENS)
    assert mx.abs(fused(TOKENS) - wanted).max().item() < 0.05 * mx.abs(wanted).max().item()
    assert mx.abs(model(TOKENS) - wanted).max().item() > 0.3 * mx.abs(wanted).max().item()
    with pytest.raises(InputError, match="exists already"):
        fuse(source, model, adapter, tmp_path / "fused")


@pytest.mark.slow
def test_the_divergence_of_a_fused_model_is_measured(tmp_path: Path) -> None:
    model, _ = load_modules(TINY)
    write_peft(tmp_path / "a", model, paths(model, "q_proj"))
    done = fuse(TINY, model, load_adapter(tmp_path / "a", model), tmp_path / "fused")
    assert done.kl is not None and 0 <= float(str(done.kl["mean"])) < 1e-3
    assert (tmp_path / "fused" / "optiq" / "fused.json").is_file()
