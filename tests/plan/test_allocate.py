"""The chooser: optimal against brute force, budget kept and used, deterministic, clear refusals."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiq.errors import InputError
from optiq.plan.allocate import allocate, curve, smallest_bytes
from optiq.plan.options import make_options
from optiq.plan.types import Item, Option

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
SHAPES = [(1024, 1024), (3072, 1024), (1024, 3072), (512, 1024), (2048, 1024), (16, 512, 1024)]


def random_items(count: int, seed: int, decades: float = 6.0) -> list[Item]:
    rng = np.random.default_rng(seed)
    items = []
    for i in range(count):
        shape = SHAPES[rng.integers(len(SHAPES))]
        options = make_options(shape, BITS, GROUPS)
        scale = 10.0 ** rng.uniform(-decades, 0)
        damage = tuple(
            scale * 4.0 ** (2 - option.bits) * (option.group_size / 64) ** 0.35 * rng.uniform(0.9, 1.1) for option in options
        )
        items.append(Item(f"layers.{i}.proj", "linear", shape, options, damage))
    return items


def brute_force(items: list[Item], budget: int) -> float:
    best = math.inf
    for picks in itertools.product(*(range(len(item.options)) for item in items)):
        if sum(item.options[i].bytes for item, i in zip(items, picks, strict=True)) <= budget:
            damage = math.fsum(max(item.damage[i], 0.0) for item, i in zip(items, picks, strict=True))
            best = min(best, damage)
    return best


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[list[Item], int]:
    items = []
    magnitude = draw(st.sampled_from([1, 7, 4096, 10_000_019]))
    for i in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 5))
        sizes = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
        exponents = draw(st.lists(st.floats(-12, 1), min_size=count, max_size=count))
        options = tuple(Option(2 + k, 64, size * magnitude) for k, size in enumerate(sizes))
        items.append(Item(f"t{i}", "linear", (8, 64), options, tuple(10.0**e for e in exponents)))
    smallest = smallest_bytes(items)
    largest = sum(max(option.bytes for option in item.options) for item in items)
    return items, draw(st.integers(smallest, largest + 3))


@given(small_cases())
@settings(max_examples=150, deadline=None)
def test_equals_brute_force(case: tuple[list[Item], int]) -> None:
    items, budget = case
    plan = allocate(items, budget)
    assert plan.bytes <= budget
    assert plan.bytes == sum(choice.bytes for choice in plan.choices)
    assert plan.damage == pytest.approx(brute_force(items, budget), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_equals_brute_force_on_real_options(seed: int) -> None:
    items = random_items(4, seed)
    budget = int(4.2 * sum(item.params for item in items) / 8)
    assert allocate(items, budget).damage == pytest.approx(brute_force(items, budget), rel=1e-9)


@pytest.mark.parametrize("bpw", [2.5, 3.0, 4.5, 5.0, 6.5])
@pytest.mark.parametrize("count", [20, 186])
def test_budget_is_a_ceiling_and_is_used(count: int, bpw: float) -> None:
    items = random_items(count, seed=count)
    budget = int(bpw * sum(item.params for item in items) / 8)
    plan = allocate(items, budget)
    assert 0.995 * budget <= plan.bytes <= budget
    assert plan.bpw <= bpw
    assert plan.gap <= 1e-6 * plan.damage


def test_is_deterministic() -> None:
    items = random_items(60, seed=5)
    budget = int(4.5 * sum(item.params for item in items) / 8)
    assert allocate(items, budget) == allocate(items, budget)


def test_more_budget_never_hurts() -> None:
    items = random_items(30, seed=6)
    params = sum(item.params for item in items)
    damages = [allocate(items, int(bpw * params / 8)).damage for bpw in np.arange(2.5, 8.5, 0.25)]
    assert damages == sorted(damages, reverse=True)


def test_beats_every_uniform_plan_of_its_size() -> None:
    items = random_items(40, seed=7)
    for k in range(len(items[0].options)):
        size = sum(item.options[k].bytes for item in items)
        assert allocate(items, size).damage <= math.fsum(item.damage[k] for item in items) * (1 + 1e-12)


def test_large_case_takes_seconds() -> None:
    items = random_items(500, seed=8, decades=11)
    budget = int(4.5 * sum(item.params for item in items) / 8)
    started = time.perf_counter()
    plan = allocate(items, budget)
    assert time.perf_counter() - started < 10  # measured: 0.02 to 0.6 s on one core
    assert 0.999 * budget <= plan.bytes <= budget


def test_everything_fits() -> None:
    items = random_items(3, seed=9)
    plan = allocate(items, 10**12)
    assert plan.damage == pytest.approx(math.fsum(min(item.damage) for item in items))
    assert plan.gap == 0


def test_noise_below_zero_counts_as_zero() -> None:
    options = (Option(4, 64, 10), Option(8, 64, 20))
    plan = allocate([Item("a", "linear", (2, 64), options, (-1e-18, -5e-18))], 30)
    assert plan.choices[0].bits == 4 and plan.damage == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_damage_that_is_no_number_names_the_tensor(bad: float) -> None:
    item = Item("layers.3.mlp.up_proj", "linear", (2, 64), (Option(4, 64, 10),), (bad,))
    with pytest.raises(InputError, match=r"layers\.3\.mlp\.up_proj: the damage at 4 bits, group size 64 is (nan|inf)"):
        allocate([item], 100)


def test_impossible_budget_says_the_smallest() -> None:
    items = random_items(3, seed=10)
    smallest = smallest_bytes(items)
    with pytest.raises(InputError, match=rf"smallest possible is {smallest} bytes \(2\.250 bits per weight\)"):
        allocate(items, smallest - 1)
    assert allocate(items, smallest).bytes == smallest


def test_item_without_options_is_refused() -> None:
    with pytest.raises(InputError, match="lonely has 0 options and 0 damages"):
        allocate([Item("lonely", "linear", (2, 64), (), ())], 100)


def test_no_items_is_an_empty_plan() -> None:
    plan = allocate([], 0)
    assert plan.choices == () and plan.bytes == 0 and plan.bpw == 0


def test_curve_is_the_pareto_front() -> None:
    items = random_items(12, seed=11)
    plans = curve(items, points=16)
    assert 2 <= len(plans) <= 16
    assert plans[0].bytes == smallest_bytes(items)
    for before, after in itertools.pairwise(plans):
        assert before.bytes < after.bytes and before.damage > after.damage
    for plan in plans:
        assert allocate(items, plan.bytes).damage == pytest.approx(plan.damage, rel=1e-9)
