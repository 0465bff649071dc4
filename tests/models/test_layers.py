"""The table of layer forms: the same results as the definitions, for whole models, and nothing outside them touched."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import random_models
from optiq.kernels import native
from optiq.models import arch, layers
from optiq.models.caches import make_caches
from optiq.models.load import load_modules

TINY = Path(__file__).parents[2] / "examples" / "tiny-qwen3.5"

needs_native = pytest.mark.skipif(native.module() is None, reason="the native kernels were not built here")


def _model(path: Path, bits: int = 0, dtype: mx.Dtype = mx.float32) -> Any:
    model, _ = load_modules(path)
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model, 32, bits, class_predicate=lambda _, layer: hasattr(layer, "to_quantized"))
        layers.use_kernels(model)
    mx.eval(model.parameters())
    return model


def _logits(model: Any, ids: np.ndarray, cuts: tuple[int, ...] = ()) -> np.ndarray:
    """Logits of the last part of ids [B, L], read in parts that end at `cuts`."""
    caches = make_caches(model)
    for part in np.split(ids, cuts, axis=1):
        logits = model(mx.array(part), cache=caches)
        mx.eval(logits)
    return np.array(logits.astype(mx.float32))


def _greedy(model: Any, prompt: np.ndarray, count: int) -> list[int]:
    caches, found, ids = make_caches(model), [], prompt
    for _ in range(count):
        found.append(int(mx.argmax(model(mx.array(ids), cache=caches)[0, -1]).item()))
        ids = np.array([[found[-1]]])
    return found


@pytest.fixture
def definitions(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls a function with the definitions in place of the native kernels."""

    def run(function: Any, *args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(native, "module", lambda: None)
            return function(*args)

    return run


def test_every_class_of_the_table_exists() -> None:
    for name in layers.FORMS:
        module, _, cls = name.rpartition(".")
        arch.shared("cache")  # puts the alias package in place
        assert issubclass(getattr(importlib.import_module(module), cls), nn.Module), name


@needs_native
@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("family", sorted(random_models.CONFIGS))
def test_a_family_gives_the_logits_of_the_definitions(family: str, bits: int, tmp_path: Path, definitions: Any) -> None:
    model = _model(random_models.write(tmp_path / family, family), bits)
    ids = np.random.default_rng(0).integers(1, 60, (2, 37))
    for cuts in ((), (30, 36)):
        ours, wanted = _logits(model, ids, cuts), definitions(_logits, model, ids, cuts)
        assert np.abs(ours - wanted).max() <= 2e-3 * np.abs(wanted).max()


@needs_native
def test_greedy_tokens_of_the_tiny_model_equal_the_definitions(definitions: Any) -> None:
    model = _model(TINY)
    prompt = np.random.default_rng(1).integers(1, 4000, (1, 50))
    assert _greedy(model, prompt, 64) == definitions(_greedy, model, prompt, 64)


@needs_native
@pytest.mark.parametrize(("bits", "dtype"), [(4, mx.bfloat16), (4, mx.float32), (0, mx.float32)])
def test_a_row_gives_the_same_bits_whatever_else_is_in_the_batch(bits: int, dtype: mx.Dtype) -> None:
    model = _model(TINY, bits, dtype)
    ids = np.random.default_rng(2).integers(1, 4000, (5, 6))
    together = _logits(model, ids, (1, 2, 3, 4, 5))
    for row in range(5):
        assert (together[row] == _logits(model, ids[row : row + 1], (1, 2, 3, 4, 5))[0]).all()


@needs_native
def test_a_quantized_model_has_the_gradient_of_the_definitions(definitions: Any) -> None:
    model = _model(TINY, 4)
    vectors = mx.array(np.random.default_rng(3).standard_normal((1, 5, 256)).astype(np.float32))

    def gradient() -> np.ndarray:
        def loss(x: mx.array) -> mx.array:
            return model.language_model(mx.zeros((1, 5), mx.int32), input_embeddings=x).square().sum()

        return np.array(mx.grad(loss)(vectors))

    ours, wanted = gradient(), definitions(gradient)
    assert np.abs(ours - wanted).max() <= 1e-3 * np.abs(wanted).max()


@needs_native
def test_stock_layers_and_modules_stay_as_they_were() -> None:
    import mlx_lm.models.activations as activations
    import mlx_lm.models.base as base

    before = {name: vars(module).copy() for name, module in (("base", base), ("activations", activations))}
    calls = {cls: cls.__call__ for cls in (nn.Linear, nn.QuantizedLinear, nn.RMSNorm, nn.Embedding)}
    _model(TINY, 4)
    assert all(cls.__call__ is call for cls, call in calls.items())
    assert vars(base) == before["base"] and vars(activations) == before["activations"]


@needs_native
def test_a_form_is_its_stock_class_to_everybody_else() -> None:
    model = _model(TINY, 4)
    found = dict(model.named_modules())
    quantized = [layer for layer in found.values() if isinstance(layer, nn.QuantizedLinear)]
    assert quantized and all(type(layer).__name__ == "QuantizedLinear" for layer in quantized)
    assert all(isinstance(layer, layers.QuantizedLinear) for layer in quantized)
    assert not any(isinstance(layer, layers.Linear) and layer.weight.dtype == mx.uint32 for layer in found.values())
