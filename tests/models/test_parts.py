"""A pass from any block on is the rest of a whole pass, and the model is afterwards what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.models.caches import make_caches
from optiq.models.load import load_modules
from optiq.models.parts import Parts
from optiq.models.topology import block_list

KINDS = ["llama", "qwen3_5-tied", "gemma3"]
IDS = mx.array([[5, 9, 3, 17, 60, 2, 8]])


def model_of(kind: str, path: Path) -> Any:
    model, _ = load_modules(random_models.write(path / kind, kind))
    model.set_dtype(mx.float32)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_from_a_block_on_is_the_rest_of_the_whole(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path)
    blocks = list(block_list(model))
    expected = np.array(model(IDS, cache=make_caches(model)))
    with Parts(model) as parts:
        logits, found = parts.logits(IDS, make_caches(model), mx.array([1, 6]), keep=range(parts.depth))
        np.testing.assert_allclose(np.array(logits), expected[:, [1, 6]], atol=1e-5)
        assert sorted(found) == list(range(parts.depth)) and parts.first(2) == 2
        for start in range(1, parts.depth):
            again, _ = parts.logits(IDS, make_caches(model), mx.array([1, 6]), start, found[start])
            np.testing.assert_array_equal(np.array(again), np.array(logits))
        assert [layer.index for layer in parts.layers] and all("layers" in name for name in parts.names)
    assert all(a is b for a, b in zip(block_list(model), blocks, strict=True))
    np.testing.assert_array_equal(np.array(model(IDS, cache=make_caches(model))), expected)


def test_a_model_in_one_piece_is_run_whole(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    expected = np.array(model(IDS))
    parts = Parts(model)
    parts._list = None
    with parts:
        assert parts.first(2) == 0
        logits, found = parts.logits(IDS, make_caches(model), mx.array([3]), keep=(1,))
        np.testing.assert_allclose(np.array(logits), expected[:, [3]], atol=1e-5)
        assert found == {}
        parts.forward(IDS, make_caches(model), 2)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_forward_pass_ends_where_it_is_told(tmp_path: Path, stop: int) -> None:
    model = model_of("llama", tmp_path)
    with Parts(model) as parts:
        caches = make_caches(model)
        parts.forward(IDS, caches, stop)
    assert [cache.offset for cache in caches] == [7] * stop + [0] * (3 - stop)
