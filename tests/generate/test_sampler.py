"""Distributions against values worked out by hand, penalties, seeds, and rows that do not notice each other."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiq.errors import InputError, ModelError
from optiq.generate.sampler import Sampler, adjusted, distributions, draw_rows
from optiq.generate.sampling import Sampling

# Logits whose softmax is 0.1, 0.4, 0.2, 0.3: the order of ids is not that of probabilities.
PROBABILITIES = (0.1, 0.4, 0.2, 0.3)
LOGITS = mx.array([math.log(p) + 5 for p in PROBABILITIES])

# Every way to draw, and every penalty.
MIXED: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "top_p": 0.95, "top_k": 20},
    {"temperature": 0.7, "top_k": 40, "presence_penalty": 1.5},
    {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"temperature": 1.0},
    {"temperature": 1.3, "top_p": 0.8, "frequency_penalty": -0.5},
    {"temperature": 1.0, "top_k": 30, "min_p": 0.1, "repetition_penalty": 1.3},
    {"temperature": 0.8, "min_p": 0.02, "logit_bias": {5: 3.0, 7: -100.0}},
    {"temperature": 1.0, "top_k": 20, "repetition_penalty": 0.8, "presence_penalty": 0.1, "frequency_penalty": 0.2},
    {"repetition_penalty": 1.2, "logit_bias": {1: 9.0}},
    {"temperature": 1.0, "top_k": 5000},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.5, "logit_bias": {2: 4.0}},
]


def distribution(logits: mx.array, **chosen: Any) -> list[float]:
    """The probabilities [V] that the draw uses."""
    found = Sampler(Sampling(**{"temperature": 1.0, **chosen})).distribution(logits)
    return [round(float(p), 5) for p in found.dense(logits.shape[-1])]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, (0.1, 0.4, 0.2, 0.3)),
        ({"temperature": 0.5}, (1 / 30, 16 / 30, 4 / 30, 9 / 30)),  # squares over their sum
        ({"top_k": 2}, (0, 4 / 7, 0, 3 / 7)),
        ({"top_k": 9}, (0.1, 0.4, 0.2, 0.3)),
        ({"top_p": 0.39}, (0, 1, 0, 0)),
        ({"top_p": 0.41}, (0, 4 / 7, 0, 3 / 7)),
        ({"top_p": 1e-9}, (0, 1, 0, 0)),
        ({"top_k": 3, "top_p": 0.45}, (0, 4 / 7, 0, 3 / 7)),  # of the three, 4/9 < 0.45
        ({"top_k": 3, "top_p": 0.44}, (0, 1, 0, 0)),  # the share is of what top-k left, 4/9 of it, not 0.4
        ({"min_p": 0.5}, (0, 4 / 9, 2 / 9, 3 / 9)),  # at least 0.2
        ({"min_p": 0.51}, (0, 4 / 7, 0, 3 / 7)),
        ({"top_p": 0.85, "min_p": 0.6}, (0, 4 / 7, 0, 3 / 7)),
        ({"top_k": 3, "min_p": 0.6}, (0, 4 / 7, 0, 3 / 7)),
        ({"temperature": 0.5, "min_p": 0.5}, (0, 16 / 25, 0, 9 / 25)),  # filters see the tempered probabilities
        ({"temperature": 1e-4}, (0, 1, 0, 0)),
        ({"temperature": 1e-4, "top_k": 3}, (0, 1, 0, 0)),
        ({"temperature": 0.0, "top_k": 3}, (0, 1, 0, 0)),
    ],
)
def test_distributions_by_hand(chosen: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert distribution(LOGITS, **chosen) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("chosen", [{"top_k": 3}, {"top_p": 0.85}, {}, {"top_k": 3, "min_p": 0.6}])
def test_draws_follow_the_distribution(chosen: dict[str, Any]) -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=4, **chosen))
    wanted = sampler.distribution(LOGITS).dense(4)
    drawn = np.array([int(sampler(LOGITS)[0]) for _ in range(1000)])
    share = np.bincount(drawn, minlength=4) / len(drawn)
    assert not share[wanted == 0].any()
    # Three standard deviations of a share near 0.4 over 1000 draws are 0.047.
    assert np.abs(share - wanted).max() < 0.05


def test_penalties_by_hand() -> None:
    """Token 0 was used twice, token 2 once and stood in the prompt, token 1 in the prompt alone."""
    logits = mx.array([2.0, -2.0, 3.0, 1.0])

    def penalized(**chosen: float) -> list[float]:
        sampler = Sampler(Sampling(**chosen), prompt=[1, 2, 99])
        for token in (0, 2, 0):
            sampler.take(token)
        return adjusted([sampler], logits[None], [None])[0].tolist()

    assert penalized(repetition_penalty=2.0) == [1.0, -4.0, 1.5, 1.0]
    assert penalized(presence_penalty=0.5) == [1.5, -2.0, 2.5, 1.0]
    assert penalized(frequency_penalty=0.5) == [1.0, -2.0, 2.5, 1.0]
    assert penalized(repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=0.25) == [-0.5, -4.0, 0.25, 1.0]
    assert logits.tolist() == [2.0, -2.0, 3.0, 1.0]


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


def test_tokens_that_nobody_has_read_yet_count_too() -> None:
    """The next step is launched before the present token is waited for."""
    logits = mx.array([1.0, 1.1, 1.2])
    for chosen in ({"presence_penalty": 1.0}, {"frequency_penalty": 0.15}, {"repetition_penalty": 1.15}):
        read, unread = Sampler(Sampling(**chosen)), Sampler(Sampling(**chosen))
        wanted = [int(read(logits)[0]) for _ in range(5)]
        assert mx.concatenate([unread(logits) for _ in range(5)]).tolist() == wanted
        assert len(set(wanted)) > 1


def test_logit_bias() -> None:
    logits = mx.array([1.0, 1.1, 1.2])
    assert int(Sampler(Sampling(logit_bias={0: 5.0}))(logits)[0]) == 0
    assert int(Sampler(Sampling(logit_bias={2: -math.inf}))(logits)[0]) == 1
    with pytest.raises(InputError, match="logit bias for token 3, expected an id from 0 to 2"):
        Sampler(Sampling(logit_bias={3: 1.0}))(logits)


@pytest.mark.parametrize("chosen", MIXED)
def test_a_mask_comes_before_everything_else(chosen: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    logits = mx.array(rng.standard_normal(200), mx.bfloat16)
    mask = np.zeros(200, np.bool_)
    mask[[3, 5, 8]] = True
    sampler = Sampler(Sampling(**chosen), prompt=[3])
    assert {int(sampler(logits, mask)[0]) for _ in range(40)} <= {3, 5, 8}
    found = sampler.distribution(logits, mask).dense(200)
    assert found.sum() == pytest.approx(1) and not found[~mask].any()


def test_a_mask_changes_the_share_that_top_k_and_top_p_see() -> None:
    mask = np.array([True, False, True, True])
    for chosen in ({"top_k": 2}, {"top_p": 0.7}, {"top_k": 3, "top_p": 0.7}):
        found = Sampler(Sampling(temperature=1.0, **chosen)).distribution(LOGITS, mask).dense(4)
        assert found == pytest.approx([0, 0, 0.4, 0.6], abs=1e-5)


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


def test_uniform_numbers() -> None:
    samplers = [Sampler(Sampling(seed=seed)) for seed in range(400)]
    found = []
    for place in range(5):
        found += [[sampler.uniform(), sampler.uniform(1), sampler.uniform(2)] for sampler in samplers]
        for sampler in samplers:
            assert len(sampler) == place
            sampler.take(0)
    numbers = np.array(found)
    assert numbers.min() >= 0 and numbers.max() < 1
    # Standard deviations over 2000 numbers: 0.0065 of a mean, 0.022 of a correlation.
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.026
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.09
    assert abs(np.corrcoef(numbers[:-400, 0], numbers[400:, 0])[0, 1]) < 0.1  # of one place and the next
    assert len(np.unique(numbers)) == numbers.size


@pytest.mark.parametrize("width", [100, 4500, 9000])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_row_draws_in_a_batch_what_it_draws_alone(width: int, dtype: mx.Dtype) -> None:
    rng = np.random.default_rng(width)
    count, steps = len(MIXED), 6
    logits = [mx.array(2 * rng.standard_normal((count, width)), dtype) for _ in range(steps)]
    masks = [[None if rng.random() < 0.5 else rng.random(width) < 0.3 for _ in range(count)] for _ in range(steps)]
    prompts = [rng.integers(0, width, 30).tolist() for _ in range(count)]

    def samplers() -> list[Sampler]:
        return [
            Sampler(Sampling(**{**chosen, "seed": seed}), prompt)
            for seed, (chosen, prompt) in enumerate(zip(MIXED, prompts, strict=True))
        ]

    together, apart = samplers(), samplers()
    for x, allowed in zip(logits, masks, strict=True):
        drawn = draw_rows(together, x, allowed).tolist()
        assert drawn == [int(sampler(x[row], allowed[row])[0]) for row, sampler in enumerate(apart)]
    order = rng.permutation(count)
    assert draw_rows([together[row] for row in order], logits[0][mx.array(order)]).tolist() == [
        int(apart[row](logits[0][row])[0]) for row in order
    ]


def test_distributions_of_the_places_of_a_draft() -> None:
    """All at once they are what each place has when it comes; nothing is remembered."""
    rng = np.random.default_rng(8)
    draft = [3, 9, 3]
    logits = mx.array(2 * rng.standard_normal((len(draft) + 1, 4500)), mx.bfloat16)
    masks = [None, rng.random(4500) < 0.5, None, None]
    for chosen in MIXED:
        sampler = Sampler(Sampling(**chosen), prompt=[3, 4])
        places = [sampler.copy() for _ in range(len(draft) + 1)]
        for count, place in enumerate(places):
            for token in draft[:count]:
                place.take(token)
        found = distributions(places, logits, masks)
        assert [len(place) for place in places] == [0, 1, 2, 3]
        for row, (one, token) in enumerate(zip(found, [*draft, 0], strict=True)):
            np.testing.assert_array_equal(one.dense(4500), sampler.distribution(logits[row], masks[row]).dense(4500))
            sampler.take(token)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MIXED), st.integers(0, 8), st.integers(0, 8), st.integers(0, 1 << 40))
def test_going_back_draws_the_same_again(chosen: dict[str, Any], first: int, second: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = mx.array(rng.standard_normal((first + second + 1, 40)))
    sampler = Sampler(Sampling(**{**chosen, "seed": seed}), prompt=[3, 4])
    drawn = [int(sampler(logits[i])[0]) for i in range(first)]
    twin = sampler.copy()
    after = [int(sampler(logits[first + i])[0]) for i in range(second)]
    sampler.rollback(second)
    assert len(sampler) == first
    assert [int(sampler(logits[first + i])[0]) for i in range(second)] == after
    for token in after:
        twin.take(token)
    assert int(twin(logits[-1])[0]) == int(sampler(logits[-1])[0])
    assert len(drawn) + second + 1 == len(twin)
    with pytest.raises(ValueError, match="to take back of"):
        twin.rollback(first + second + 2)


@pytest.mark.parametrize("top_k", [0, 3], ids=["all", "top-k"])
@pytest.mark.parametrize("temperature", [1e-29, 1e-38, 1e-40, 1e-320])
@pytest.mark.filterwarnings("error")
def test_a_temperature_that_float32_does_not_know_takes_the_likeliest(temperature: float, top_k: int) -> None:
    sampler = Sampler(Sampling(temperature=temperature, top_k=top_k, top_p=0.95))
    assert [sampler(LOGITS).item() for _ in range(5)] == [1] * 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [0, 1e-320, 1.0])
def test_a_repetition_penalty_that_float32_does_not_know_repeats(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, repetition_penalty=1e-320), prompt=[3])
    assert [sampler(LOGITS).item() for _ in range(3)] == [3] * 3


def test_logits_that_are_no_numbers_give_no_token_beyond_the_vocabulary() -> None:
    logits = mx.full((4,), math.nan)
    assert Sampler(Sampling(temperature=1.0, top_k=2, top_p=0.9))(logits).item() < 4
    with pytest.raises(ModelError, match="the model's largest logit is nan, expected a finite number"):
        Sampler(Sampling(temperature=1.0))(logits)
