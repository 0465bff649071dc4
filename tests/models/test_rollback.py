"""Look-ahead steps that keep a part, against single steps: equal bits where kernels promise them, per row in a batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.kernels import native
from optiq.models.caches import cache_arrays, make_caches
from optiq.models.load import load_modules
from optiq.models.rollback import Verify, record_of
from tiny_model import tiny

IDS = np.random.default_rng(0).integers(3, 4000, 60)

fast = pytest.mark.skipif(native.module() is None, reason="the native kernels were not built here")


@pytest.fixture(scope="module", params=[(4, mx.bfloat16), (8, mx.float32), (None, mx.bfloat16), (None, mx.float32)], ids=str)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(*request.param)


def _begun(model: Any) -> list[Any]:
    caches = make_caches(model)
    mx.eval(model(mx.array(IDS[None, :20]), cache=caches), cache_arrays(caches))
    return caches


def _single(model: Any, caches: list[Any], tokens: np.ndarray) -> list[np.ndarray]:
    return [np.array(model(mx.array([[int(token)]]), cache=caches)[0, -1].astype(mx.float32)) for token in tokens]


def _look(model: Any, caches: list[Any], tokens: np.ndarray, keep: int, read: Any = None) -> tuple[np.ndarray, bool]:
    with Verify(caches, len(tokens)) as step:
        logits = np.array(model(mx.array(tokens[None]), cache=caches)[0].astype(mx.float32))
        return logits, step.accept(keep)


@fast
@pytest.mark.parametrize("length", [2, 3, 5])
def test_what_is_kept_has_the_bits_of_single_steps(model: Any, length: int) -> None:
    caches, plain = _begun(model), _begun(model)
    at = 20
    for keep in [*range(1, length + 1), 1, length]:
        wrong = IDS[::-1][:length].copy()  # what is not kept is other text
        wrong[:keep] = IDS[at : at + keep]
        logits, kept = _look(model, caches, wrong, keep)
        assert kept
        expected = _single(model, plain, IDS[at : at + keep])
        np.testing.assert_array_equal(logits[:keep], expected)
        at += keep
    np.testing.assert_array_equal(_single(model, caches, IDS[at : at + 2]), _single(model, plain, IDS[at : at + 2]))
    for ours, theirs in zip(cache_arrays(caches), cache_arrays(plain), strict=True):
        if ours.shape == theirs.shape and ours.ndim == 4 and ours.dtype == mx.float32 and ours.shape[-1] == ours.shape[-2]:
            np.testing.assert_array_equal(np.array(ours), np.array(theirs))  # states


@fast
def test_whoever_looks_at_a_cache_finds_it_up_to_date(model: Any) -> None:
    caches, plain = _begun(model), _begun(model)
    _look(model, caches, IDS[20:23], 2)
    _single(model, plain, IDS[20:22])
    copied = copy.deepcopy(caches)
    for cache, other, twin in zip(caches, plain, copied, strict=True):
        if hasattr(other, "cache"):
            for ours, mine, theirs in zip(cache.cache, twin.cache, other.cache, strict=True):
                np.testing.assert_array_equal(np.array(ours.astype(mx.float32)), np.array(theirs.astype(mx.float32)))
                np.testing.assert_array_equal(np.array(mine.astype(mx.float32)), np.array(theirs.astype(mx.float32)))
    wanted = _single(model, plain, IDS[22:24])
    np.testing.assert_array_equal(_single(model, caches, IDS[22:24]), wanted)
    np.testing.assert_array_equal(_single(model, copied, IDS[22:24]), wanted)


@fast
def test_nothing_kept_and_a_failed_step(model: Any) -> None:
    caches, plain = _begun(model), _begun(model)
    assert _look(model, caches, IDS[30:33], 0)[1]
    assert all(record_of(cache) is None for cache in caches)
    with pytest.raises(RuntimeError), Verify(caches, 2):
        raise RuntimeError
    assert all(record_of(cache) is None for cache in caches)
    np.testing.assert_array_equal(_single(model, caches, IDS[20:22]), _single(model, plain, IDS[20:22]))


@fast
def test_rows_of_a_batch_keep_their_own_counts() -> None:
    from mlx_lm.models.cache import BatchKVCache, KVCache

    model = tiny(4, mx.float32)
    prompt, looked = IDS[:24].reshape(2, 12), IDS[24:32].reshape(2, 4)
    caches = [BatchKVCache([0, 0]) if isinstance(cache, KVCache) else cache for cache in make_caches(model)]
    mx.eval(model(mx.array(prompt), cache=caches))
    for counts in ([1, 4], [3, 2]):
        with Verify(caches, 4) as step:
            mx.eval(model(mx.array(looked), cache=caches))
            assert step.accept(counts)
    following = IDS[40:46].reshape(2, 3)
    ours = np.array(model(mx.array(following), cache=caches))
    for row, kept in enumerate(([1, 3], [4, 2])):
        alone = make_caches(model)
        text = np.concatenate([prompt[row], looked[row][: kept[0]], looked[row][: kept[1]], following[row]])
        theirs = np.array(model(mx.array(text[None]), cache=alone))[0, -3:]
        np.testing.assert_allclose(ours[row], theirs, atol=0.02, rtol=0.02)  # a prompt's products round otherwise than a step's
        assert np.abs(theirs).max() > 3


@pytest.mark.parametrize(("name", "half_way"), [("llama", True), ("gemma3", False), ("qwen3_5-moe", native.module() is not None)])
def test_other_layers_are_cut_or_put_back(name: str, half_way: bool, tmp_path: Path) -> None:
    model, _ = load_modules(random_models.write(tmp_path, name))
    model.set_dtype(mx.float32)
    ids = IDS % 100 + 3
    caches, plain = make_caches(model), make_caches(model)
    for cache in (caches, plain):
        mx.eval(model(mx.array(ids[None, :20]), cache=cache))
    for keep in (4, 2):
        with Verify(caches, 4) as step:
            mx.eval(model(mx.array(ids[None, 20:24]), cache=caches))
            kept = step.accept(keep)
        assert kept == (half_way or keep == 4)
        now = keep if kept else 0
        _single(model, plain, ids[20 : 20 + now])
    after = _single(model, caches, ids[30:32])
    np.testing.assert_allclose(after, _single(model, plain, ids[30:32]), atol=2e-4)
