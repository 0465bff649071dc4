"""The cache that appends in place: the same keys and values as mlx-lm's, and no two caches share what they write."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

from optiq.kernels import native
from optiq.kv.cache import PackedCache
from optiq.kv.recipe import preset
from optiq.models.caches import _growing_cache, cache_arrays, evaluate, growing_cache

pytestmark = pytest.mark.skipif(native.module() is None, reason="the native kernels were not built here")


def _rows(seed: int, length: int) -> tuple[mx.array, mx.array]:
    rng = np.random.default_rng(seed)
    keys, values = (mx.array(rng.standard_normal((2, length, 3, 8)).astype(np.float32)) for _ in range(2))
    return keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)  # as attention layers hand them over: not contiguous


def _feed(cache: Any, seeds: range, length: int = 1) -> None:
    for seed in seeds:
        cache.update_and_fetch(*_rows(seed, length))


def _content(cache: Any) -> np.ndarray:
    return np.array(mx.concatenate(cache.keys_and_values(), axis=-1))


def test_it_holds_what_the_stock_cache_holds_beyond_a_step_of_growth() -> None:
    ours, stock = _growing_cache()(), KVCache()
    for cache in (ours, stock):
        _feed(cache, range(3), 100)
        _feed(cache, range(50))
    assert ours.offset == stock.offset == 350
    assert (_content(ours) == _content(stock)).all()


def test_steps_that_overlap_see_their_own_past() -> None:
    cache = _growing_cache()()
    seen = []
    for seed in range(20):
        keys, values = cache.update_and_fetch(*_rows(seed, 1))
        seen.append((keys.sum(), values.sum()))
        mx.async_eval(*seen[-1])
    stock = KVCache()
    for seed, found in zip(range(20), seen, strict=True):
        wanted = [array.sum() for array in stock.update_and_fetch(*_rows(seed, 1))]
        assert [x.item() for x in found] == pytest.approx([x.item() for x in wanted], abs=1e-4)


def test_a_copy_and_its_original_go_their_own_ways() -> None:
    first = _growing_cache()()
    _feed(first, range(5))
    second = copy.deepcopy(first)
    before = _content(second)
    first.trim(3)
    _feed(first, range(10, 14))
    assert (_content(second) == before).all()
    _feed(second, range(20, 22))
    wanted = KVCache()
    _feed(wanted, range(5))
    _feed(wanted, range(20, 22))
    assert (_content(second) == _content(wanted)).all()


def test_a_state_that_somebody_holds_is_not_written_over() -> None:
    cache = _growing_cache()()
    _feed(cache, range(5))
    keys, _, offset = cache.state
    before = np.array(keys[..., :offset, :])
    cache.trim(2)
    _feed(cache, range(30, 34))
    assert (np.array(keys[..., :offset, :]) == before).all()


def test_whoever_computes_a_cache_leaves_it_its_buffer() -> None:
    """Else each chunk of a prompt would copy all that was read before."""
    token = mx.ones((1, 2, 3, 64))
    for cache in (growing_cache(), PackedCache(preset("turbo", 4))):
        for _ in range(3):
            cache.update_and_fetch(token, token)
            evaluate([cache])
        assert cache.owned if hasattr(cache, "owned") else cache._owned
        cache_arrays([cache])
        assert not (cache.owned if hasattr(cache, "owned") else cache._owned)
