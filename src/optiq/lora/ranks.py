"""The rank of each adapter.

    constant          r_i = r
    by_bits           r_i = max(2, ceil(r b_i / 4)),  b_i the bits of the layer's codes, 16 without codes
    by_sensitivity    r_i ~ sqrt(d_i / c_i),  d_i the damage in nats that the plan predicts for the layer, c_i the
                      parameters of its adapter at rank 1; together as many parameters as r everywhere, r / 4 <= r_i <= 4 r

If what is left of a damage falls as d_i / r_i, the last is where the sum of d_i / r_i is least for a number of parameters. A
layer without a damage (the plan kept it in 16 bits) gets the least rank. Knows targets by shape and bits, no model.

Source: by_bits: the reference product, `lora train --rank-scaling by_bits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from optiq.errors import InputError
from optiq.lora.targets import Target, parameters
from optiq.plan.table import read_plan
from optiq.registry import Table

Ranks = dict[str, int]
Targets = Mapping[str, Target]


def constant(targets: Targets, rank: int, damages: Mapping[str, float]) -> Ranks:
    """The same rank everywhere."""
    return dict.fromkeys(targets, rank)


def by_bits(targets: Targets, rank: int, damages: Mapping[str, float]) -> Ranks:
    """More where codes are wider."""
    return {path: max(2, math.ceil(rank * target.bits / 4)) for path, target in targets.items()}


def by_sensitivity(targets: Targets, rank: int, damages: Mapping[str, float]) -> Ranks:
    """More where the plan lost more.

    Raises:
        InputError: the model has no plan.
    """
    if not damages:
        raise InputError("--rank-scaling by_sensitivity: the model has no optiq/plan.json; convert it, or choose by_bits")
    wanted = {path: math.sqrt(damages.get(path, 0.0) / target.width) for path, target in targets.items()}
    if not any(wanted.values()):
        return constant(targets, rank, damages)
    least, most = max(1, rank // 4), 4 * rank

    def clipped(factor: float) -> dict[str, float]:
        return {path: min(max(factor * weight, least), most) for path, weight in wanted.items()}

    return _spent(targets, clipped, parameters(targets, constant(targets, rank, damages)))


SCALINGS: Table[Callable[[Targets, int, Mapping[str, float]], Ranks]] = Table("rank scaling")
SCALINGS.add("constant", constant)
SCALINGS.add("by_bits", by_bits)
SCALINGS.add("by_sensitivity", by_sensitivity)


def choose(targets: Targets, scaling: str, rank: int, damages: Mapping[str, float], budget: int | None = None) -> Ranks:
    """The rank of each target; never more than the narrower side of its layer.

    Args:
        targets: see `optiq.lora.targets.find`.
        scaling: a key of `SCALINGS`.
        rank: r.
        damages: nats by path, empty without a plan (`damages_of`).
        budget: if given, ranks are scaled to the most that takes no more parameters.

    Raises:
        InputError: an unknown scaling, no plan, a budget below rank 1 everywhere.
    """
    if rank < 1:
        raise InputError(f"--rank {rank}: expected at least 1")
    found = SCALINGS[scaling](targets, rank, damages)
    if budget is not None:
        shares = dict(found)
        least = parameters(targets, dict.fromkeys(targets, 1))
        if budget < least:
            raise InputError(
                f"--param-budget {budget}: rank 1 everywhere takes {least} parameters; ask for more, or for fewer layers"
            )
        found = _spent(targets, lambda factor: {path: max(1.0, factor * share) for path, share in shares.items()}, budget)
    return {path: min(rank, *targets[path].shape[-2:]) for path, rank in found.items()}


def damages_of(model: Path) -> dict[str, float]:
    """Nats that the plan predicts for each tensor of a model directory; empty where it has no plan."""
    plan = read_plan(model)
    choices = (plan or {}).get("choices", [])
    return {choice["name"]: float(choice["damage_nats"]) for choice in choices if choice.get("damage_nats") is not None}


def _spent(targets: Targets, ranks: Callable[[float], dict[str, float]], budget: int) -> Ranks:
    """Whole ranks from the largest factor whose ranks, rounded down, keep a budget; what is left goes where most was cut off."""
    low, high = 0.0, 1.0
    while _cost(targets, ranks(high)) <= budget and high < 1e18:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _cost(targets, ranks(middle)) <= budget else (low, middle)
    wanted = ranks(low)
    found = {path: int(rank) for path, rank in wanted.items()}
    left = budget - parameters(targets, found)
    for path in sorted(found, key=lambda path: found[path] - wanted[path]):
        if wanted[path] > found[path] and targets[path].width <= left:
            found[path] += 1
            left -= targets[path].width
    return found


def _cost(targets: Targets, ranks: Mapping[str, float]) -> int:
    return parameters(targets, {path: int(rank) for path, rank in ranks.items()})
