"""Marks, cuts and sizes of caches."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.models.caches import Mark, cache_bytes, can_cut, cut, make_caches
from optiq.models.load import load_modules

TOKENS = mx.array([[5, 6, 7, 8, 9, 10, 11, 12]])


@pytest.mark.parametrize(("kind", "cuttable"), [("llama", True), ("qwen3_5-tied", False), ("gemma3", False)])
def test_a_mark_brings_back_what_was_there(tmp_path: Path, kind: str, cuttable: bool) -> None:
    model, _ = load_modules(random_models.write(tmp_path, kind))
    caches = make_caches(model)
    assert cache_bytes(caches) == 0 and can_cut(caches) == cuttable
    model(TOKENS, cache=caches)
    mark = Mark(caches)
    expected = np.array(model(mx.array([[20]]), cache=caches).astype(mx.float32))
    assert cache_bytes(caches) > 0
    for other in (40, 41):
        model(mx.array([[other] * 30]), cache=caches)
        caches = mark.restore(caches)
        assert np.array_equal(np.array(model(mx.array([[20]]), cache=caches).astype(mx.float32)), expected)


def test_cutting(tmp_path: Path) -> None:
    model, _ = load_modules(random_models.write(tmp_path, "llama"))
    caches = make_caches(model)
    model(TOKENS[:, :5], cache=caches)
    expected = np.array(model(TOKENS[:, 5:6], cache=caches).astype(mx.float32))
    model(TOKENS, cache=caches)
    cut(caches, 9)
    assert [cache.offset for cache in caches] == [5, 5, 5]
    assert np.array_equal(np.array(model(TOKENS[:, 5:6], cache=caches).astype(mx.float32)), expected)
