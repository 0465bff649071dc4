"""The tree of prefixes against a plain list of what was kept, and its rules of eviction."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from optiq.serve.prefix import Piece, PrefixCache

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)


def put(cache, tokens, before=None, columns=10, rest=10, seconds=1.0, key="k"):
    return cache.add(key, tokens, before, Piece(("c", tokens), columns), Piece(("r", tokens), rest), seconds)


@settings(max_examples=200, deadline=None)
@given(st.lists(TOKENS, max_size=12), TOKENS, st.integers(0, 9))
def test_the_longest_prefix_is_found(kept, asked, most):
    cache = PrefixCache(10**9)
    for tokens in kept:
        put(cache, tokens)
    fitting = [t for t in kept if t == asked[: len(t)] and len(t) <= most]
    found = cache.find("k", asked, most)
    if not fitting:
        assert found is None
    else:
        assert found.rest.value == ("r", max(fitting, key=len))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TOKENS, st.integers(1, 30), st.integers(0, 30), st.booleans()), max_size=20), st.integers(0, 120))
def test_the_limit_is_kept_and_what_is_found_is_whole(steps, limit):
    cache = PrefixCache(limit)
    for tokens, columns, rest, chained in steps:
        before = cache.find("k", tokens, len(tokens) - 1) if chained else None
        put(cache, tokens, before, columns, rest)
        assert cache.bytes <= limit
        found = cache.find("k", tokens, len(tokens))
        if found is not None:
            path = found.path()
            assert [step.length for step in path] == sorted({step.length for step in path})
            assert all(step.columns.value == ("c", tokens[: step.length]) for step in path)
    total = sum(c.bytes for c in cache._checkpoints.values())
    assert cache.bytes == total
    cache.shrink(10**9)
    assert cache.bytes == 0 and len(cache) == 0 and not cache._roots


def test_keys_do_not_share():
    cache = PrefixCache(1000)
    put(cache, (1, 2), key="a")
    assert cache.find("b", (1, 2, 3), 2) is None


def test_a_checkpoint_in_the_middle_loses_its_rest_before_its_columns():
    cache = PrefixCache(100)
    first = put(cache, (1, 2), columns=10, rest=40, seconds=0.1)
    second = put(cache, (1, 2, 3, 4), first, columns=10, rest=40, seconds=9.0)
    cache.find("k", (1, 2, 3, 4, 5), 5)
    put(cache, (9,), columns=5, rest=5, seconds=9.0)
    assert first.rest is None and second.rest is not None
    assert cache.find("k", (1, 2, 3, 4, 5), 5) is second
    assert cache.find("k", (1, 2, 7), 3) is None


def test_what_is_cheap_to_read_again_goes_first():
    cache = PrefixCache(60)
    put(cache, (1,), seconds=5.0)
    put(cache, (2,), seconds=0.1)
    put(cache, (3,), seconds=5.0)
    put(cache, (4,), seconds=5.0)
    assert cache.find("k", (2, 0), 2) is None
    assert all(cache.find("k", (n, 0), 2) is not None for n in (1, 3, 4))


def test_what_was_used_lately_outlives_what_was_not():
    cache = PrefixCache(40)
    put(cache, (1,))
    put(cache, (2,))
    put(cache, (3,))  # evicts the first, which sets the clock
    cache.find("k", (2, 0), 2)
    put(cache, (4,))
    assert cache.find("k", (2, 0), 2) is not None
    assert cache.find("k", (3, 0), 2) is None


def test_a_checkpoint_that_cannot_fit_is_not_kept():
    cache = PrefixCache(30)
    first = put(cache, (1,), columns=10, rest=10)
    assert put(cache, (1, 2), first, columns=10, rest=10) is None
    assert cache.find("k", (1, 2), 2) is first
    assert put(PrefixCache(0), (1,)) is None


def test_an_evicted_checkpoint_comes_back_with_its_rest():
    cache = PrefixCache(70)
    first = put(cache, (1,), columns=10, rest=20, seconds=0.1)
    put(cache, (1, 2), first, columns=10, rest=20, seconds=9)
    put(cache, (5,), columns=10, rest=10, seconds=9)
    assert first.rest is None
    cache.limit_bytes = 100
    assert put(cache, (1,), None, columns=10, rest=20) is first
    assert cache.find("k", (1, 9), 2) is first
