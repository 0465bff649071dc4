"""Counts of used tokens, forwards and back, against counting anew."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from optiq.generate.used import Used


@given(st.lists(st.one_of(st.integers(0, 200), st.integers(-9, -1)), max_size=400))
def test_counts(moves: list[int]) -> None:
    """A move below 0 takes so many tokens back."""
    used, tokens = Used(), list[int]()
    for move in moves:
        if move >= 0:
            used.add(move)
            tokens.append(move)
        else:
            back = min(-move, len(tokens))
            used.take_back(back)
            del tokens[len(tokens) - back :]
    assert dict(zip(used.ids.tolist(), used.counts.tolist(), strict=True)) == Counter(tokens)
    assert len(used) == len(tokens) and used.ids.tolist() == list(dict.fromkeys(tokens))


def test_a_copy_goes_its_own_way() -> None:
    used = Used()
    used.add(3)
    other = used.copy()
    other.add(3)
    other.add(4)
    assert (used.ids.tolist(), used.counts.tolist()) == ([3], [1.0])
    assert (other.ids.tolist(), other.counts.tolist()) == ([3, 4], [2.0, 1.0])
