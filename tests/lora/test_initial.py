"""Adapters that begin as the correction of the quantization error."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import convert

from lora_training import TINY, folder, settings
from optiq.errors import InputError
from optiq.lora import initial, targets, train
from optiq.lora.batches import collate
from optiq.lora.data import Sample
from optiq.lora.learner import Learner, fresh
from optiq.lora.settings import Settings
from tiny_model import tiny


def left(error: np.ndarray, gram: np.ndarray, x: np.ndarray) -> float:
    return float(np.trace((error - x) @ gram @ (error - x).T))


@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (6, 32)])
def test_the_correction_is_the_best_of_its_rank(shape: tuple[int, int]) -> None:
    rng, rank = np.random.default_rng(0), 4
    error, inputs = rng.standard_normal(shape), rng.standard_normal((200, shape[1])) * rng.random(shape[1])
    gram = inputs.T @ inputs / 200
    u, v = initial.correction(mx.array(error.astype(np.float32)), mx.array(gram.astype(np.float32)), rank)
    values, vectors = np.linalg.eigh(gram)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    best = float((np.linalg.svd(error @ root)[1][rank:] ** 2).sum())
    assert left(error, gram, np.array(u @ v)) == pytest.approx(best, rel=0.01)


def test_a_corrected_model_is_nearer_to_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    model, base = tiny(3, mx.float32), tiny(None, mx.float32)
    found = targets.find(model)
    learner = Learner(model, found, dict.fromkeys(found, 2.0))
    rows = np.random.default_rng(0).integers(5, 4000, (6, 64)).tolist()
    batches = [collate([Sample("", tuple(row), (False, *[True] * 63))], packing=True) for row in rows]
    start = fresh(found, {path: min(16, *target.shape) for path, target in found.items()}, 0)
    begun = initial.from_error(learner, start, batches[:4], TINY)
    part = targets.find(model, ("layers.0.mlp.down_proj", "layers.0.linear_attn.out_proj"))
    few = Learner(model, part, dict.fromkeys(part, 2.0))
    monkeypatch.setattr(initial, "MOMENT_BYTES", 1)  # a pass for each layer
    again = initial.from_error(few, {path: start[path] for path in part}, batches[:4], TINY)
    assert all(mx.array_equal(again[path]["b"], begun[path]["b"]).item() for path in part)
    assert all(begun[path]["a"].shape == start[path]["a"].shape for path in found)
    base.train()
    wanted = Learner(base, {}, {}).hidden(None, batches[-1])

    def off(parameters: object) -> float:
        return float((learner.hidden(parameters, batches[-1]) - wanted).square().mean())  # type: ignore[arg-type]

    assert off(begun) < 0.8 * off(start)


def test_a_run_begins_with_the_correction(tmp_path: Path) -> None:
    model = tmp_path / "quantized"
    convert(str(TINY), str(model), quantize=True, q_bits=4, q_group_size=64)
    data = folder(tmp_path / "data", 3, 1)
    asked = {"init": "quantization-error", "base": str(TINY), "lr": 1e-9, "iters": 1, "target_modules": ("q_proj", "v_proj")}
    plain = train.run(Settings(**{**vars(settings(data, tmp_path / "plain", **asked)), "model": str(model)}))
    adapter = mx.load(str(plain.path / "adapter_model.safetensors"))
    assert isinstance(adapter, dict)
    assert all(mx.abs(array).max().item() > 1e-4 for array in adapter.values())
    with pytest.raises(InputError, match="is quantized; give the model that this one was made from"):
        train.run(Settings(**{**vars(settings(data, tmp_path / "other", **asked)), "model": str(model), "base": str(model)}))


def test_the_base_and_the_wish_go_together(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="go together; give both"):
        settings(tmp_path, tmp_path / "a", init="quantization-error")
