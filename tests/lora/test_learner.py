"""Losses and gradients: packed as apart, recomputed as kept, and as finite differences say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import random_models
from optiq.lora import batches, targets
from optiq.lora.data import Sample
from optiq.lora.learner import Dropout, Learner, Parameters, fresh
from optiq.models.load import load_modules
from tiny_model import tiny

PACKED = 1e-5  # largest difference of gradients, over the largest value in any: sums in another order


def samples(vocabulary: int, *lengths: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [Sample("x", tuple(rng.integers(3, vocabulary, n).tolist()), tuple(i > n // 3 for i in range(n))) for n in lengths]


def learner(
    model: Any, recompute: bool = True, dora: bool = False, names: tuple[str, ...] = ("all",)
) -> tuple[Learner, Parameters]:
    """A learner of rank 2 everywhere whose B are not zero."""
    found = targets.find(model, names)
    parameters = fresh(found, dict.fromkeys(found, 2), seed=0, dora=dora)
    for seed, part in enumerate(parameters.values()):
        part["b"] = 0.1 * mx.random.normal(part["b"].shape, key=mx.random.key(seed))
    return Learner(model, found, dict.fromkeys(found, 1.5), recompute), parameters


def gradient(
    of: Learner, parameters: Parameters, batch: batches.Batch, dropout: Dropout | None = None
) -> tuple[float, dict[str, mx.array]]:
    def loss(parameters: Parameters) -> mx.array:
        return of.losses(parameters, of.hidden(parameters, batch, dropout), batch).sum()

    value, gradients = mx.value_and_grad(loss)(parameters)
    mx.eval(value, gradients)
    return value.item(), dict(tree_flatten(gradients))


def worst(one: dict[str, mx.array], other: dict[str, mx.array]) -> float:
    largest = max(mx.abs(array).max().item() for array in other.values())
    return max(mx.abs(one[name] - other[name]).max().item() for name in other) / largest


@pytest.fixture(scope="module", params=["tiny-4bit", "llama", "gemma3", "qwen3_5-moe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "tiny-4bit":
        return tiny(4, mx.float32)
    found, _ = load_modules(random_models.write(tmp_path_factory.mktemp("m") / "m", request.param))
    found.set_dtype(mx.float32)
    return found


def test_packed_samples_learn_what_they_learn_apart(model: Any) -> None:
    of, parameters = learner(model)
    texts = samples(120, 21, 7, 40)
    packed, padded = (batches.collate(texts, packing) for packing in (True, False))
    assert packed.tokens.shape == (1, 65) and padded.tokens.shape == (3, 39)
    one, other = gradient(of, parameters, packed), gradient(of, parameters, padded)
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert worst(one[1], other[1]) < PACKED


def test_without_borders_packed_samples_would_reach_each_other(model: Any) -> None:
    of, parameters = learner(model)
    batch = batches.collate(samples(120, 21, 7, 40), packing=True)
    mixed = batches.Batch(batch.tokens, None, batch.positions, batch.targets, batch.owners, batch.samples)
    assert abs(gradient(of, parameters, batch)[0] - gradient(of, parameters, mixed)[0]) > 1e-3


def test_blocks_computed_twice_give_the_same_gradient(model: Any) -> None:
    batch = batches.collate(samples(120, 21, 30), packing=True)
    of, parameters = learner(model)
    one = gradient(of, parameters, batch)
    other = gradient(learner(model, recompute=False)[0], parameters, batch)
    assert one[0] == other[0] and worst(one[1], other[1]) < 1e-6


def test_the_gradient_is_that_of_finite_differences() -> None:
    model = tiny(None, mx.float32)
    of, parameters = learner(model, dora=True, names=("down_proj", "in_proj_z", "q_proj", "lm_head"))
    batch = batches.collate(samples(4000, 20, 9), packing=True)
    _, found = gradient(of, parameters, batch)
    for name in list(parameters)[::3] + ["language_model.lm_head"]:
        for part, array in parameters[name].items():
            slope = found[f"{name}.{part}"]
            step = 1e-2 * slope / mx.linalg.norm(slope)
            up, down = (
                gradient(of, {**parameters, name: {**parameters[name], part: array + sign * step}}, batch)[0] for sign in (1, -1)
            )
            # DoRA takes lengths as constant, so slopes by A and B are compared without them
            tolerance = 0.3 if part != "m" else 0.02
            assert (up - down) / 2 == pytest.approx(1e-2 * mx.linalg.norm(slope).item(), rel=tolerance), (name, part)


def test_a_new_adapter_changes_nothing() -> None:
    model = tiny(4, mx.float32)
    found = targets.find(model)
    of = Learner(model, found, dict.fromkeys(found, 1.0))
    batch = batches.collate(samples(4000, 30), packing=True)
    assert mx.array_equal(of.hidden(fresh(found, dict.fromkeys(found, 4), 0), batch), of.hidden(None, batch))


def test_dropout_is_drawn_by_place() -> None:
    of, parameters = learner(tiny(4, mx.float32))
    batch = batches.collate(samples(4000, 30), packing=True)
    losses = [gradient(of, parameters, batch, Dropout(0.5, place, list(parameters)))[0] for place in ((0, 1), (0, 1), (0, 2))]
    assert losses[0] == losses[1] != losses[2]


def test_logits_are_made_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    of, parameters = learner(tiny(4, mx.float32))
    batch = batches.collate(samples(4000, 40, 30), packing=True)
    whole = gradient(of, parameters, batch)
    monkeypatch.setattr("optiq.lora.learner.CHUNK", 7)
    pieces = gradient(of, parameters, batch)
    assert pieces[0] == pytest.approx(whole[0], rel=1e-6) and worst(pieces[1], whole[1]) < 1e-3


def test_models_in_which_packed_texts_meet_are_noticed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    of, _ = learner(model)
    texts = samples(120, 20, 20)
    alone = [batches.collate([text], packing=True) for text in texts]
    both = batches.collate(texts, packing=True)
    assert of.agrees(*alone, both)
    monkeypatch.setattr("optiq.models.segments.borders", lambda length: None)
    assert not of.agrees(*alone, both)


def test_paths_of_a_written_model_are_found(tmp_path: Path) -> None:
    model, _ = load_modules(random_models.write(tmp_path / "m", "qwen3_5-moe"))
    found = targets.find(model, ("switch_mlp.up_proj",))
    assert {target.shape[0] for target in found.values()} == {4} and len(found) == 4
