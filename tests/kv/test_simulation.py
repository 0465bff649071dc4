"""One pass over a row with simulated caches gives what as many decoding steps with real caches give."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.kv import attach, simulation
from optiq.kv.recipe import FULL, Recipe, preset
from optiq.kv.rows import Statistics
from optiq.models.caches import make_caches
from optiq.models.load import load_modules
from optiq.models.parts import Parts

LENGTH = 90
SHORT = dataclasses.replace(preset("best", 3), sinks=2, tail=8)
RECIPES = {
    "affine": preset("affine", 4, group_size=32),
    "turbo": preset("turbo", 3),
    "best": SHORT,
    "best without tail": dataclasses.replace(SHORT, tail=0),
    "long tail": dataclasses.replace(SHORT, tail=40),
    "keys alone": dataclasses.replace(SHORT, v_bits=FULL),
    "affine with a tail": dataclasses.replace(preset("affine", 4, group_size=32), sinks=2, tail=8),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Random models in float32, by kind."""
    found = {}
    for kind in ("llama", "qwen3_5-tied", "gemma3"):
        found[kind], _ = load_modules(random_models.write(tmp_path_factory.mktemp(kind), kind))
        found[kind].set_dtype(mx.float32)
    return found


def known_of(model: Any) -> dict[int, Statistics]:
    """Some statistics, the same for every layer."""
    rng = np.random.default_rng(1)

    def of(groups: int, width: int) -> Statistics:
        parts = [mx.array(rng.standard_normal((groups, width)) * 0.1) for _ in range(3)]
        return Statistics(parts[0], mx.exp(parts[1]), parts[2])

    return {layer.index: of(1, 32) for layer in attach.layers(model)}


def both(model: Any, ids: np.ndarray, recipe: Recipe, known: dict[int, Statistics]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, L, V] of one pass, and of steps."""
    recipes = {layer.index: recipe for layer in attach.layers(model)}
    caches = attach.make_caches(model, recipes, known)
    steps = [model(mx.array(ids[:, t : t + 1]), cache=caches)[:, 0] for t in range(ids.shape[1])]
    with Parts(model) as parts:
        own = simulation.make_caches(parts, mx.float32, recipes, known)
        once, _ = parts.logits(mx.array(ids), own, mx.arange(ids.shape[1]))
    return np.array(once), np.array(mx.stack(steps, 1))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["llama", "qwen3_5-tied", "gemma3"])
def test_one_pass_is_as_many_steps(models: dict[str, Any], kind: str, name: str) -> None:
    model, recipe = models[kind], RECIPES[name]
    ids = np.random.default_rng(0).integers(3, 120, (1, LENGTH))
    for known in ({}, known_of(model)) if recipe.scheme == "best" and kind == "llama" else ({},):
        once, steps = both(model, ids, recipe, known)
        plain = np.array(model(mx.array(ids), cache=make_caches(model)))
        # A value at the bound of two codes may take either, and what follows differs by a step of one of them.
        assert np.abs(once - steps).mean() < 0.05 * np.abs(steps - plain).mean()
        np.testing.assert_allclose(once[:, :3], steps[:, :3], atol=2e-3)


def test_a_tail_longer_than_the_row_and_a_mean_change_nothing(models: dict[str, Any]) -> None:
    model = models["llama"]
    ids = np.random.default_rng(0).integers(3, 120, (1, 40))
    once, _ = both(model, ids, dataclasses.replace(SHORT, tail=64), known_of(model))
    np.testing.assert_allclose(once, np.array(model(mx.array(ids), cache=make_caches(model))), atol=1e-4)


def test_packed_counts_are_those_of_a_cache(models: dict[str, Any]) -> None:
    for recipe in RECIPES.values():
        caches = attach.make_caches(models["llama"], recipe)
        counts = []
        for token in range(60):
            models["llama"](mx.array([[5 + token]]), cache=caches)
            counts.append(caches[0]._packed)
        assert counts == simulation.packed_counts(recipe, 60, recipe.sinks).tolist()


def test_a_cache_takes_one_row(models: dict[str, Any]) -> None:
    with Parts(models["llama"]) as parts:
        caches = simulation.make_caches(parts, mx.float32, {})
        parts.logits(mx.zeros((1, 3), mx.int32), caches, mx.array([0]))
        with pytest.raises(ValueError, match="a simulated cache takes one row at once"):
            parts.logits(mx.zeros((1, 3), mx.int32), caches, mx.array([0]))
