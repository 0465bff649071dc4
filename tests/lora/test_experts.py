"""Adapters of banks of experts: against mlx-lm's own layers, and each row as it is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tuner.lora import LoRASwitchLinear

import random_models
from adapter_files import paths, write_mlx
from lora_training import settings
from optiq.errors import FormatError, InputError
from optiq.lora import initial, targets
from optiq.lora.adapters import load_adapter
from optiq.lora.batches import collate
from optiq.lora.corpus import Corpus, Part
from optiq.lora.data import Sample
from optiq.lora.learner import Learner, fresh
from optiq.lora.mounted import Mounted
from optiq.lora.train import Trainer
from optiq.models import layers
from optiq.models.load import load_modules


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.write(tmp_path_factory.mktemp("models") / "moe", "qwen3_5-moe")


def loaded(checkpoint: Path, bits: int | None) -> Any:
    model, _ = load_modules(checkpoint)
    model.set_dtype(mx.float32)
    if bits is not None:
        nn.quantize(model, 32, bits, class_predicate=lambda _, layer: hasattr(layer, "to_quantized"))
        layers.use_kernels(model)
    return model


@pytest.fixture(scope="module", params=[None, 4])
def experts(checkpoint: Path, request: pytest.FixtureRequest) -> Any:
    return loaded(checkpoint, request.param)


@pytest.mark.parametrize("length", [1, 40])  # 40 tokens to 2 experts each are sorted, 1 is not
def test_rows_do_not_notice_each_other(experts: Any, tmp_path: Path, length: int) -> None:
    modules = paths(experts, "switch_mlp.up_proj", "switch_mlp.down_proj", "shared_expert.up_proj")
    assert len(modules) == 12
    mounted = Mounted(experts)
    for seed, name in enumerate(("a", "b")):
        mounted.mount(name, load_adapter(write_mlx(tmp_path / name, experts, modules, rank=2 + seed, seed=seed), experts))
    names = ["b", None, "a", "b"]
    ids = mx.array(np.random.default_rng(1).integers(1, 120, (4, length)))
    bare = np.array(experts(ids))
    with mounted.rows(names):
        mixed = np.array(experts(ids))
    np.testing.assert_array_equal(mixed[1], bare[1])
    for row, name in enumerate(names):
        with mounted.rows([name]):
            alone = np.array(experts(ids[row : row + 1]))[0]
        np.testing.assert_allclose(mixed[row], alone, atol=0 if length == 1 else 1e-3)  # many rows: other products, bare or not
        if name is not None:
            assert np.abs(mixed[row] - bare[row]).max() > 0.05
    assert mounted.nbytes > 0
    for name in ("a", "b"):
        mounted.unmount(name)
    assert mounted.nbytes == 0
    np.testing.assert_array_equal(np.array(experts(ids)), bare)


@pytest.mark.parametrize("length", [1, 40])
def test_a_bank_is_changed_as_mlx_lm_changes_it(checkpoint: Path, tmp_path: Path, length: int) -> None:
    model, theirs = loaded(checkpoint, None), loaded(checkpoint, None)
    (path,) = (path for path in paths(model, "layers.1.mlp.switch_mlp.gate_proj"))
    mounted = Mounted(model)
    adapter = load_adapter(write_mlx(tmp_path, model, [path], rank=3), model)
    mounted.mount("a", adapter)
    owner, part = theirs.layers[1].mlp.switch_mlp, adapter.parts[path]
    owner.gate_proj = LoRASwitchLinear.from_base(owner.gate_proj, r=3, scale=part.scale)
    owner.gate_proj.lora_a, owner.gate_proj.lora_b = part.a, part.b
    ids = mx.array(np.random.default_rng(2).integers(1, 120, (1, length)))
    with mounted.rows(["a"]):
        found = np.array(model(ids))
    np.testing.assert_allclose(found, np.array(theirs(ids)), atol=1e-4)
    assert np.abs(found - np.array(model(ids))).max() > 0.01


def test_no_dora_of_experts(experts: Any, tmp_path: Path) -> None:
    modules = paths(experts, "layers.0.mlp.switch_mlp.up_proj")
    with pytest.raises(FormatError, match="switch_mlp.up_proj is a bank of experts, for which there is no DoRA"):
        load_adapter(write_mlx(tmp_path, experts, modules, fine_tune_type="dora"), experts)


def test_no_training_of_dora_on_experts(experts: Any) -> None:
    found = targets.find(experts, ("switch_mlp.up_proj",))
    with pytest.raises(
        InputError, match="^--use-dora: .*switch_mlp.up_proj is a bank of experts, for which there is no DoRA; leave"
    ):
        fresh(found, dict.fromkeys(found, 2), 0, dora=True)


def test_trained_experts_are_written_for_mlx_lm_alone_and_said_to_be(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = loaded(checkpoint, None)
    found = targets.find(model, ("gate_proj", "down_proj"))
    ranks = dict.fromkeys(found, 2)
    units = tuple((Sample("here", tuple(range(5 + n, 25 + n)), (False, *[True] * 19)),) for n in range(4))
    asked = settings(tmp_path, tmp_path / "a", packing=False, iters=3, lr=1e-2, max_length=20, batch_size=4)
    trainer = Trainer(asked, Corpus(Part(tmp_path, {}, units, ()), None), Learner(model, found, dict.fromkeys(found, 1.0)), ranks)
    state = trainer.start()
    losses = [trainer.step(state)[0] for _ in range(3)]
    assert losses[2] < losses[0] and "PEFT has no form: adapter_model.safetensors will not be written" in caplog.text
    assert any(part["a"].ndim == 3 and part["b"].any().item() for part in state.parameters.values())
    base = random_models.write(tmp_path / "base", "qwen3_5-moe", seed=1)
    begun = initial.from_error(
        Learner(model, found, dict.fromkeys(found, 1.0)), state.parameters, [collate(units[0], False)], base
    )
    assert all(begun[path]["b"].any().item() and begun[path]["a"].shape == state.parameters[path]["a"].shape for path in found)
