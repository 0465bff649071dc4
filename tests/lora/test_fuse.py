"""A fused model computes what model and adapter compute, up to the codes."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import quick
import random_models
from adapter_files import paths, write_peft
from lora_training import TINY
from optiq.errors import InputError
from optiq.lora.adapters import load_adapter
from optiq.lora.fuse import fuse
from optiq.lora.mounted import Mounted
from optiq.models.load import load_modules
from optiq.models.mtp_head import load_head

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


def test_gptq_codes_stay_where_the_adapter_is_not(tmp_path: Path) -> None:
    source = random_models.write(tmp_path / "model", "llama")
    quick.converted(source, tmp_path / "coded", encoder="gptq", verify=False)
    model, _ = load_modules(tmp_path / "coded")
    changed = paths(model, "layers.2.self_attn.q_proj", "layers.1.mlp.down_proj")
    write_peft(tmp_path / "a", model, changed)
    done = fuse(tmp_path / "coded", model, load_adapter(tmp_path / "a", model), tmp_path / "fused")
    assert done.layers == len(changed) == 2
    before, after = (mx.load(str(tmp_path / name / "model.safetensors")) for name in ("coded", "fused"))
    assert isinstance(before, dict) and isinstance(after, dict) and set(before) == set(after)
    differ = {name.rpartition(".")[0] for name, array in before.items() if not mx.array_equal(array, after[name]).item()}
    assert differ == set(changed)
    quick.assert_close(quick.logits(tmp_path / "fused"), quick.stock_logits(tmp_path / "fused"))


def test_the_head_for_several_tokens_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optiq.lora.fuse._measured", lambda *_: None)
    model, _ = load_modules(TINY)
    write_peft(tmp_path / "a", model, paths(model, "layers.0.mlp.down_proj"))
    adapter, wanted = load_adapter(tmp_path / "a", model), dict(tree_flatten(load_head(TINY, model).parameters()))
    fuse(TINY, model, adapter, tmp_path / "once")
    once, _ = load_modules(tmp_path / "once")
    fuse(tmp_path / "once", once, adapter, tmp_path / "twice")
    for name in ("once", "twice"):
        found = dict(tree_flatten(load_head(tmp_path / name, once).parameters()))
        assert set(found) == set(wanted) and all(mx.array_equal(found[key], wanted[key]).item() for key in wanted)
        assert json.loads((tmp_path / name / "config.json").read_text())["mtp_file"] == "mtp.safetensors"


@pytest.mark.slow
def test_the_divergence_of_a_fused_model_is_measured(tmp_path: Path) -> None:
    model, _ = load_modules(TINY)
    write_peft(tmp_path / "a", model, paths(model, "q_proj"))
    done = fuse(TINY, model, load_adapter(tmp_path / "a", model), tmp_path / "fused")
    assert done.kl is not None and 0 <= float(str(done.kl["mean"])) < 1e-3
    assert (tmp_path / "fused" / "optiq" / "fused.json").is_file()


@pytest.mark.parametrize("place", ["model", ".", "a", "mine"])
def test_nobodys_files_are_replaced_by_a_fused_model(tmp_path: Path, place: str) -> None:
    source = random_models.write(tmp_path / "model", "llama")
    model, _ = load_modules(source)
    write_peft(tmp_path / "a", model, paths(model, "q_proj"))
    (tmp_path / "a" / "config.json").write_text("{}")  # as if it were a model too
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(InputError, match="is or holds the (model|adapter)|is not a model directory"):
        fuse(source, model, load_adapter(tmp_path / "a", model), tmp_path / place, overwrite=True)
    assert sorted(path for path in tmp_path.rglob("*")) == before
