"""Steps whose last tokens are taken back leave the bits that single tokens leave, if no longer than `lookahead`."""

from __future__ import annotations

import random

import mlx.core as mx
import pytest

from optiq.kv.cache import PackedCache
from optiq.kv.recipe import Recipe, preset

RECIPES = [
    preset("best", 4),
    preset("turbo", 4),
    preset("affine", 8),
    Recipe("best", 3, 3, sinks=2, tail=7),
    Recipe("best", 4, 4, sinks=0, tail=0),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_steps_that_are_cut_leave_what_single_tokens_leave(recipe: Recipe) -> None:
    choose = random.Random(1)
    mx.random.seed(1)
    single, looking = (PackedCache(recipe, still=48) for _ in range(2))
    keys, values = (mx.random.normal((1, 2, 220, 64)) for _ in range(2))
    for cache in (single, looking):
        cache.update_and_fetch(keys[:, :, :9], values[:, :, :9])
    at = 9
    while at < 200:
        length = max(1, min(choose.randrange(1, 6), looking.lookahead))
        kept = choose.randrange(1, length + 1)
        looking.update_and_fetch(
            mx.concatenate([keys[:, :, at : at + kept], mx.random.normal((1, 2, length - kept, 64))], 2),
            mx.concatenate([values[:, :, at : at + kept], mx.random.normal((1, 2, length - kept, 64))], 2),
        )
        looking.trim(length - kept)
        for place in range(at, at + kept):
            single.update_and_fetch(keys[:, :, place : place + 1], values[:, :, place : place + 1])
        at += kept
        assert single.columns == looking.columns and single.offset == looking.offset == at
        for a, b in zip(single.keys_and_values(), looking.keys_and_values(), strict=True):
            assert mx.array_equal(a, b)


def test_before_the_mean_of_the_keys_is_known_nothing_may_be_dropped() -> None:
    cache = PackedCache(Recipe("best", 4, 4, sinks=0, tail=0), still=48)
    assert cache.lookahead == 0
    cache.update_and_fetch(mx.ones((1, 1, 2, 64)), mx.ones((1, 1, 2, 64)))
    assert cache.lookahead > 1000


def test_a_step_may_be_long_right_after_packing_and_short_before() -> None:
    cache = PackedCache(Recipe("best", 4, 4, sinks=4, tail=64), still=48)
    token = mx.ones((1, 1, 1, 64))
    seen = []
    for _ in range(140):
        cache.update_and_fetch(token, token)
        seen.append(cache.lookahead)
    assert seen[67 + 31] == 1 and seen[67 + 32] == 32 and seen[67 + 33] == 31
