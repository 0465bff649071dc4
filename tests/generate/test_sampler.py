"""Distributions against values worked out by hand, penalties, seeds."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from optiq.errors import InputError
from optiq.generate.sampler import Sampler, narrowed, penalized
from optiq.generate.sampling import Sampling

# Logits whose softmax is 0.1, 0.4, 0.2, 0.3: the order of ids is not that of probabilities.
PROBABILITIES = (0.1, 0.4, 0.2, 0.3)
LOGITS = mx.array([math.log(p) + 5 for p in PROBABILITIES])


def distribution(logits: mx.array, **settings: Any) -> list[float]:
    """The probabilities [V] that the draw uses."""
    values, indices = narrowed(logits, Sampling(**{"temperature": 1.0, **settings}))
    found = mx.softmax(values)
    if indices is not None:
        found = mx.zeros(logits.shape).at[indices].add(found)
    return [round(float(p), 5) for p in found.tolist()]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (0.1, 0.4, 0.2, 0.3)),
        ({"temperature": 0.5}, (1 / 30, 16 / 30, 4 / 30, 9 / 30)),  # squares over their sum
        ({"top_k": 2}, (0, 4 / 7, 0, 3 / 7)),
        ({"top_k": 9}, (0.1, 0.4, 0.2, 0.3)),
        ({"top_p": 0.4}, (0, 1, 0, 0)),  # the first reaches the share exactly
        ({"top_p": 0.41}, (0, 4 / 7, 0, 3 / 7)),
        ({"top_p": 1e-9}, (0, 1, 0, 0)),
        ({"top_k": 3, "top_p": 0.45}, (0, 4 / 7, 0, 3 / 7)),  # of the three, 4/9 < 0.45
        ({"top_k": 3, "top_p": 0.44}, (0, 1, 0, 0)),  # the share is of what top-k left, 4/9 of it, not 0.4
        ({"min_p": 0.5}, (0, 4 / 9, 2 / 9, 3 / 9)),  # at least 0.2
        ({"min_p": 0.51}, (0, 4 / 7, 0, 3 / 7)),
        ({"temperature": 0.5, "min_p": 0.5}, (0, 16 / 25, 0, 9 / 25)),  # filters see the tempered probabilities
        ({"temperature": 1e-4}, (0, 1, 0, 0)),
    ],
)
def test_distributions_by_hand(settings: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert distribution(LOGITS, **settings) == pytest.approx(expected, abs=2e-5)


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_k=3, seed=4))
    drawn = np.array(mx.concatenate([sampler(LOGITS) for _ in range(1000)]))
    share = np.bincount(drawn, minlength=4) / len(drawn)
    assert share[0] == 0
    # Three standard deviations of a share near 0.4 over 1000 draws are 0.047.
    assert np.abs(share - np.array([0, 4, 2, 3]) / 9).max() < 0.05


def test_penalties_by_hand() -> None:
    logits, counts = mx.array([2.0, -2.0, 3.0, 1.0]), mx.array([2.0, 0.0, 1.0, 0.0])
    known = mx.array([True, True, True, False])
    found = penalized(logits, counts, known, Sampling(repetition_penalty=2.0))
    assert found.tolist() == [1.0, -4.0, 1.5, 1.0]
    found = penalized(logits, counts, known, Sampling(presence_penalty=0.5))
    assert found.tolist() == [1.5, -2.0, 2.5, 1.0]
    found = penalized(logits, counts, known, Sampling(frequency_penalty=0.5))
    assert found.tolist() == [1.0, -2.0, 2.5, 1.0]
    found = penalized(logits, counts, known, Sampling(repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=0.25))
    assert found.tolist() == [-0.5, -4.0, 0.25, 1.0]


def test_what_counts_as_used() -> None:
    """Presence and frequency look at the reply alone, repetition at the prompt too."""
    logits = mx.array([1.0, 1.1, 1.2])
    greedy = [int(Sampler(Sampling(presence_penalty=1.0), prompt=[2])(logits)[0])]
    assert greedy == [2]
    sampler = Sampler(Sampling(presence_penalty=1.0), prompt=[2])
    assert [int(sampler(logits)[0]) for _ in range(4)] == [2, 1, 0, 2]
    sampler = Sampler(Sampling(frequency_penalty=0.15))
    assert [int(sampler(logits)[0]) for _ in range(5)] == [2, 1, 2, 0, 1]
    assert int(Sampler(Sampling(repetition_penalty=2.0), prompt=[2])(logits)[0]) == 1


def test_logit_bias() -> None:
    logits = mx.array([1.0, 1.1, 1.2])
    assert int(Sampler(Sampling(logit_bias={0: 5.0}))(logits)[0]) == 0
    assert int(Sampler(Sampling(logit_bias={2: -math.inf}))(logits)[0]) == 1
    with pytest.raises(InputError, match="logit bias for token 3, expected an id from 0 to 2"):
        Sampler(Sampling(logit_bias={3: 1.0}))(logits)


def test_greedy_takes_the_first_of_the_largest_and_keeps_its_hands_off_the_logits() -> None:
    logits = mx.array([1.0, 7.0, 7.0])
    assert Sampler(Sampling())(logits).tolist() == [1] and logits.tolist() == [1.0, 7.0, 7.0]


def test_seeds() -> None:
    logits = mx.zeros((500,))

    def draws(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, top_p=0.9, seed=seed))
        return [int(sampler(logits)[0]) for _ in range(20)]

    mx.random.seed(1)
    first = draws(7)
    mx.random.seed(2)  # the global state plays no part
    assert draws(7) == first != draws(8)
