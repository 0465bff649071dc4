"""What is written loads in our engine and in stock mlx-lm with equal logits, and in PEFT on transformers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import random_models
from adapter_files import paths
from lora_training import TINY
from optiq.errors import InputError
from optiq.lora import save
from optiq.lora.adapters import load_adapter
from optiq.lora.combine import combined
from optiq.lora.describe import describe
from optiq.lora.layers import Part
from optiq.lora.mounted import Mounted
from optiq.models.adapted import expert_layers, linear_layers, weight_shape
from optiq.models.load import load_modules

TOKENS = mx.array([[5, 9, 77, 31, 8, 100, 3, 64] * 4])


def parts(model: Any, modules: list[str], ranks: list[int], scales: list[float], dora: bool = False) -> dict[str, Part]:
    rng, layers, found = np.random.default_rng(0), linear_layers(model) | expert_layers(model), {}
    for index, module in enumerate(modules):
        *experts, outputs, inputs = weight_shape(layers[module])
        rank = ranks[index % len(ranks)]
        a, b = rng.standard_normal((*experts, rank, inputs)) / inputs**0.5, 0.3 * rng.standard_normal((*experts, outputs, rank))
        m = mx.array(0.5 + rng.random(outputs), mx.float32) if dora else None
        found[module] = Part(mx.array(a, mx.float32), mx.array(b, mx.float32), scales[index % len(scales)], m)
    return found


def logits(model: Any, adapter: Path) -> mx.array:
    mounted = Mounted(model)
    mounted.mount("x", load_adapter(adapter, model))
    with mounted.rows(["x"]):
        return model(TOKENS)


def close(one: mx.array, other: mx.array) -> float:
    return (mx.abs(one - other).max() / mx.abs(other).max()).item()


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_scales_come_back(plain: Any, tmp_path: Path, rslora: bool) -> None:
    written = parts(plain, paths(plain, "q_proj", "down_proj"), [2, 5, 3], [1.0, 0.5])
    save.write(tmp_path / "a", written, "base", {}, rslora)
    found = load_adapter(tmp_path / "a", plain).parts
    assert found.keys() == written.keys()
    for module, part in written.items():
        assert mx.array_equal(found[module].a, part.a) and mx.array_equal(found[module].b, part.b)
        assert found[module].scale == pytest.approx(part.scale)


@pytest.mark.parametrize(("name", "dora"), [("llama", False), ("llama", True), ("qwen3_5-moe", False)])
def test_stock_mlx_lm_computes_the_same(tmp_path: Path, name: str, dora: bool) -> None:
    from mlx_lm.utils import load_adapters, load_model

    directory = random_models.write(tmp_path / "model", name)
    model, _ = load_modules(directory)
    model.set_dtype(mx.float32)
    ends = ("switch_mlp.up_proj", "out_proj") if name.endswith("moe") else ("q_proj", "down_proj")
    save.write(tmp_path / "a", parts(model, paths(model, *ends), [2, 4], [1.0, 0.5], dora), str(directory), {})
    stock, _ = load_model(directory)
    stock.set_dtype(mx.float32)
    stock = load_adapters(stock, str(tmp_path / "a"))
    stock.eval()
    ours = logits(model, tmp_path / "a")
    assert close(ours, stock(TOKENS)) < 1e-4
    assert close(ours, model(TOKENS)) > 1e-2
    assert (tmp_path / "a" / "adapter_model.safetensors").exists() != name.endswith("moe")


def test_merged_adapters_are_the_sum(plain: Any, tmp_path: Path) -> None:
    for index, ends in enumerate((("q_proj", "down_proj"), ("q_proj", "up_proj"))):
        save.write(tmp_path / str(index), parts(plain, paths(plain, *ends), [2 + index], [1.0 + index]), "base", {})
    both = [load_adapter(tmp_path / str(index), plain) for index in (0, 1)]
    save.write(tmp_path / "sum", combined(both, [1.0, 0.5]), "base", {})
    found = load_adapter(tmp_path / "sum", plain).parts

    def product(parts: Mapping[str, Part], module: str) -> mx.array:
        return parts[module].scale * parts[module].b @ parts[module].a if module in parts else mx.array(0.0)

    for module in paths(plain, "q_proj", "down_proj", "up_proj"):
        wanted = product(both[0].parts, module) + 0.5 * product(both[1].parts, module)
        assert close(product(found, module), wanted) < 1e-6


def test_what_cannot_be_added_up_is_refused(plain: Any, tmp_path: Path) -> None:
    save.write(tmp_path / "a", parts(plain, paths(plain, "q_proj"), [2], [1.0], dora=True), "base", {})
    adapter = load_adapter(tmp_path / "a", plain)
    with pytest.raises(InputError, match="is a DoRA adapter"):
        combined([adapter], [1.0])
    with pytest.raises(InputError, match="--scales has 2 numbers for 1 adapters"):
        combined([adapter], [1.0, 2.0])
    with pytest.raises(InputError, match="--scales are nan, expected finite numbers"):
        combined([adapter], [float("nan")])


def test_a_directory_describes_itself(plain: Any, tmp_path: Path) -> None:
    written = parts(plain, paths(plain, "q_proj", "v_proj"), [2, 5], [1.0])
    save.write(tmp_path / "a", written, "base", {"steps": 3})
    found = describe(tmp_path / "a")
    assert found["rank_counts"] == {2: 2, 5: 2} and found["modules"] == ["q_proj", "v_proj"] and found["base_model"] == "base"
    assert found["parameters"] == sum(part.a.size + part.b.size for part in written.values()) and found["training"] == {
        "steps": 3
    }
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    assert describe(tmp_path / "a")["rank_counts"] == {5: 4}


PEFT_SCRIPT = """
import sys, numpy, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(model, sys.argv[2]).eval()
tokens = torch.tensor(numpy.load(sys.argv[3]))
with torch.no_grad():
    adapted = model(tokens).logits.numpy()
    with model.disable_adapter():
        numpy.save(sys.argv[4], numpy.stack([adapted, model(tokens).logits.numpy()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
def test_peft_on_transformers_computes_the_same(tmp_path: Path, dora: bool) -> None:
    python = os.environ.get("OPTIQ_TORCH_PYTHON")
    if not python or subprocess.run([python, "-c", "import peft"], capture_output=True).returncode:
        pytest.skip("OPTIQ_TORCH_PYTHON names no Python with peft, transformers and torch")
    model, _ = load_modules(TINY)
    model.set_dtype(mx.float32)
    ends = ("q_proj", "o_proj", "in_proj_qkv", "out_proj", "down_proj")
    save.write(tmp_path / "a", parts(model, paths(model, *ends), [2, 4, 3], [1.0, 0.5], dora), str(TINY), {})
    (tmp_path / "peer.py").write_text(PEFT_SCRIPT)
    np.save(tmp_path / "ids.npy", np.array(TOKENS))
    words = [python, tmp_path / "peer.py", TINY, tmp_path / "a", tmp_path / "ids.npy", tmp_path / "logits.npy"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    adapted, bare = mx.array(np.load(tmp_path / "logits.npy"))
    alone = close(model(TOKENS), bare)  # mlx-lm rounds this family's norm weights to bfloat16
    assert alone < 2e-3 and close(logits(model, tmp_path / "a"), adapted) < 3 * alone
    assert close(adapted, bare) > 0.1
