"""Ranks follow their formulas and keep budgets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq.errors import InputError
from optiq.lora import ranks
from optiq.lora.targets import Target, find, parameters
from tiny_model import tiny


class Codes(dict[str, Any]):
    """A quantized layer, as far as ranks look."""

    def __init__(self, bits: int) -> None:
        super().__init__(scales=None)
        self.bits = bits


def targets(*bits: int, width: int = 256) -> dict[str, Target]:
    return {f"l{i}": Target(Codes(b) if b < 16 else {}, (width * (i + 1), width), 0) for i, b in enumerate(bits)}


@pytest.mark.parametrize(
    ("rank", "bits", "expected"), [(8, 4, 8), (8, 8, 16), (8, 3, 6), (8, 2, 4), (2, 2, 2), (8, 16, 32), (6, 5, 8)]
)
def test_by_bits_is_the_reference_formula(rank: int, bits: int, expected: int) -> None:
    assert ranks.choose(targets(bits), "by_bits", rank, {}) == {"l0": expected}


def test_by_sensitivity_gives_more_where_more_was_lost_and_spends_what_constant_spends() -> None:
    found = targets(4, 4, 4, 4)
    damages = {"l0": 4e-3, "l1": 1e-3, "l2": 1e-5}
    chosen = ranks.choose(found, "by_sensitivity", 8, damages)
    assert chosen["l0"] > chosen["l1"] > chosen["l2"] == chosen["l3"] == 2
    spent, constant = parameters(found, chosen), parameters(found, dict.fromkeys(found, 8))
    assert constant - max(target.width for target in found.values()) < spent <= constant


def test_by_sensitivity_needs_a_plan() -> None:
    with pytest.raises(InputError, match="no optiq/plan.json"):
        ranks.choose(targets(4), "by_sensitivity", 8, {})


@given(st.lists(st.sampled_from([2, 3, 4, 8, 16]), min_size=1, max_size=6), st.integers(1, 16), st.floats(1, 40))
def test_budgets_are_kept_and_used(bits: list[int], rank: int, factor: float) -> None:
    found = targets(*bits)
    budget = int(factor * parameters(found, dict.fromkeys(found, 1)))
    chosen = ranks.choose(found, "by_bits", rank, {}, budget)
    spent = parameters(found, chosen)
    assert spent <= budget and min(chosen.values()) >= 1
    assert budget - spent < 2 * sum(target.width for target in found.values())


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="--rank 0"):
        ranks.choose(targets(4), "constant", 0, {})
    with pytest.raises(InputError, match="--param-budget 10: rank 1 everywhere takes 512"):
        ranks.choose(targets(4), "constant", 8, {}, 10)
    with pytest.raises(InputError, match="rank scaling"):
        ranks.choose(targets(4), "by_magic", 8, {})


def test_targets_are_found_by_the_ends_of_their_paths() -> None:
    import mlx.core as mx

    model = tiny(4, mx.float32)
    everything = find(model)
    assert not any("lm_head" in path for path in everything) and {target.bits for target in everything.values()} == {4}
    assert [path.rpartition(".")[2] for path in find(model, ("q_proj", "v_proj"))] == ["q_proj", "v_proj"] * 2
    assert {target.block for target in find(model, last=2).values()} == {6, 7}
    assert list(find(model, ("lm_head",))) == ["language_model.lm_head"]
    with pytest.raises(InputError, match="--target-modules w1: no linear layer of this model is called so; there are down_proj"):
        find(model, ("w1",))
    with pytest.raises(InputError, match="--num-layers 0"):
        find(model, last=0)
