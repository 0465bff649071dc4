"""The choice of the depth, against simulated acceptances and times."""

from __future__ import annotations

import random

import pytest

from optiq.generate.depth import Acceptance, Depth


def simulate(acceptance: float, cost: list[float], tokens: int, seed: int = 0, noise: float = 0.0) -> tuple[float, list[int]]:
    """Seconds for so many tokens where a step with d guesses takes cost[d], and the depths that were chosen."""
    depth, row, draw, seconds, made, chosen = Depth(most=len(cost) - 1), Acceptance(), random.Random(seed), 0.0, 0, []
    while made < tokens:
        d, count = depth.choose([row])
        chosen.append(d)
        if d == 0:
            for _ in range(min(count, tokens - made)):
                took = cost[0] * (1 + noise * draw.random())
                depth.took(0, took)
                seconds, made = seconds + took, made + 1
            continue
        accepted = 0
        while accepted < d and draw.random() < acceptance:
            accepted += 1
        took = cost[d] * (1 + noise * draw.random())
        row.add(d, accepted)
        depth.took(d, took)
        seconds, made = seconds + took, made + accepted + 1
    return seconds, chosen


def expected(acceptance: float, depth: int) -> float:
    return sum(acceptance**i for i in range(depth + 1))


@pytest.mark.parametrize("acceptance", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("slope", [0.05, 0.2, 0.4])
def test_it_comes_near_the_best_depth(acceptance: float, slope: float) -> None:
    cost = [1 + slope * d for d in range(5)]
    best = max(expected(acceptance, d) / cost[d] for d in range(5))
    seconds, _ = simulate(acceptance, cost, 4000, noise=0.05)
    assert 4000 / seconds > 0.93 * best / 1.025  # the noise adds its mean


def test_guesses_that_are_wrong_cost_little() -> None:
    for seed in range(5):
        seconds, chosen = simulate(0.1, [1.0, 1.4, 1.8, 2.2, 2.6], 256, seed)
        assert seconds < 256 / 0.98
        assert 0 < sum(d > 0 for d in chosen) < 20


def test_it_comes_back_when_the_text_becomes_easy() -> None:
    depth, row = Depth(most=2), Acceptance()
    times = [1.0, 1.2, 1.4]

    def run(tokens: int, right: bool) -> int:
        made = guessed = 0
        while made < tokens:
            d, count = depth.choose([row])
            for _ in range(count if d == 0 else 1):
                if d == 0:
                    depth.took(0, times[0])
                    made += 1
                else:
                    row.add(d, d if right else 0)
                    depth.took(d, times[d])
                    made += 1 + (d if right else 0)
                    guessed += 1
        return guessed

    assert run(600, right=False) < 30
    run(2000, right=True)
    assert run(100, right=True) > 30


def test_fixed_and_none() -> None:
    assert Depth(3, fixed=True).choose([])[0] == 3
    assert Depth(0).choose([])[0] == 0
    assert Depth().choose([]) == (0, 4)  # first it learns what a plain step takes


def test_a_new_sequence_begins_with_what_is_usual() -> None:
    usual = Acceptance()
    for _ in range(200):
        usual.add(2, 0)
    begun = Acceptance(usual)
    assert begun.tokens(2) < 1.1 < Acceptance().tokens(2)
    for _ in range(4):
        begun.add(2, 2)
    assert begun.tokens(2) > 1.5 and usual.tokens(2) < 1.1
