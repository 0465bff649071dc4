"""The two halves against the whole model, over the architectures that the tests know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.models.caches import make_caches
from optiq.models.forward import Halves
from optiq.models.load import load_modules

IDS = np.random.default_rng(0).integers(3, 120, (2, 9))


@pytest.mark.parametrize("name", random_models.CONFIGS)
def test_the_halves_are_the_model(name: str, tmp_path: Path) -> None:
    model, _ = load_modules(random_models.write(tmp_path, name))
    halves = Halves(model)
    assert not halves.whole
    whole = model(mx.array(IDS), cache=make_caches(model))
    hidden = halves.body(mx.array(IDS), make_caches(model))
    assert hidden.shape[:2] == IDS.shape and hidden.shape[2] != whole.shape[2]
    np.testing.assert_array_equal(_plain(halves.head(hidden)), _plain(whole))
    np.testing.assert_array_equal(_plain(halves.head(hidden[:1, 4:5])), _plain(whole[:1, 4:5]))


def test_the_caches_move_on(tmp_path: Path) -> None:
    model, _ = load_modules(random_models.write(tmp_path, "qwen3_5-tied"))
    halves, caches, others = Halves(model), make_caches(model), make_caches(model)
    halves.body(mx.array(IDS[:, :5]), caches)
    model(mx.array(IDS[:, :5]), cache=others)
    last = halves.head(halves.body(mx.array(IDS[:, 5:]), caches))
    np.testing.assert_array_equal(_plain(last), _plain(model(mx.array(IDS[:, 5:]), cache=others)))


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model, _ = load_modules(random_models.write(tmp_path, "llama"))
    trunk = model.model
    halves = Halves(model)
    with pytest.raises(ValueError):
        halves.head(mx.zeros((1, 1, 3)))  # not the model's width
    assert model.model is trunk and halves.trunk is trunk


class _OnePiece:
    """A model without a trunk."""

    layers: tuple[Any, ...] = ()

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return mx.stack([tokens, tokens + 1], -1)


def test_a_model_in_one_piece_gives_logits_at_once() -> None:
    halves = Halves(_OnePiece())
    assert halves.whole
    logits = halves.body(mx.array([[3, 4]]), None)
    assert halves.head(logits).tolist() == [[[3, 4], [4, 5]]]


def _plain(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))
