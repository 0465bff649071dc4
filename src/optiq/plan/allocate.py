"""The exact chooser: one option per item, least total damage, bytes never above the budget.

    minimise Σ_i d_i(x_i)   subject to   Σ_i b_i(x_i) ≤ budget        (multiple-choice knapsack)

1. Options that another one beats in bytes and in damage are dropped.
2. The linear relaxation is solved by steps along each item's lower convex hull; it gives a multiplier λ (nats per
   byte) and a lower bound. The same steps, filled up with single upgrades, give a first plan and an upper bound.
3. With the reduced costs r = d + λ·b − min(d + λ·b) ≥ 0, a plan's damage above the lower bound is Σ r + λ·unused.
   An option whose r alone passes the upper bound is in no better plan and is dropped: exactness is kept and few remain.
4. HiGHS (`scipy.optimize.milp`) solves the rest in reduced costs scaled by the distance of the bounds, with bytes in
   units of their common divisor: all numbers are near 1 whatever the model's size or the damages' range.
5. The answer is checked in integers, compared with the first plan, and left-over bytes are offered to upgrades.

Knows no files and no MLX; scipy is imported when a plan is solved. Same input, same plan: the search is limited in
nodes, not in seconds. Source of 2 and 3: Sinha and Zoltners 1979, "The multiple-choice knapsack problem".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from optiq.errors import InputError
from optiq.plan.types import UNQUANTIZED_BITS, Choice, Item, Plan

RELATIVE_GAP = 1e-9
"""How close to the optimum HiGHS has to prove its answer, relative to the plan's damage."""

NODE_LIMIT = 4000
"""Branch-and-bound nodes before the best plan so far is taken; its proven distance is then `Plan.gap`."""

_TIGHTENINGS = 8


@dataclass(frozen=True)
class _Row:
    """One item's undominated options, bytes rising and damage falling; ``index`` points into the item's options."""

    bytes: tuple[int, ...]
    damage: tuple[float, ...]
    index: tuple[int, ...]


@dataclass(frozen=True)
class _Step:
    """A move along the hull of item ``row`` from position ``start`` to ``end``, saving ``rate`` nats per byte."""

    rate: float
    row: int
    start: int
    end: int


@dataclass(frozen=True)
class _Relaxation:
    """``price`` λ in nats per byte, ``bound`` the least damage that any plan can have, ``picks`` a feasible plan."""

    price: float
    bound: float
    picks: list[int]


def allocate(items: Sequence[Item], budget_bytes: int) -> Plan:
    """The plan of least damage whose bytes stay within the budget.

    Args:
        items: each with at least one option; damages in nats per token, rounding noise below 0 counts as 0.
        budget_bytes: ceiling for the options' bytes together; norms and file headers are not in it.

    Raises:
        InputError: a damage that is no number, an item without options, or a budget below the smallest plan.
    """
    rows = [_row(item) for item in items]
    if sum(row.bytes[0] for row in rows) > budget_bytes:
        raise InputError(impossible(items, budget_bytes))
    if sum(row.bytes[-1] for row in rows) <= budget_bytes:
        return _plan(items, rows, [len(row.bytes) - 1 for row in rows], budget_bytes, 0.0)
    relaxed = _relax(rows, budget_bytes)
    picks, bound = _solve(rows, relaxed, budget_bytes)
    picks = _fill(rows, picks, budget_bytes)
    damage = _damage(rows, picks)
    gap = damage - max(bound, relaxed.bound)
    return _plan(items, rows, picks, budget_bytes, gap if gap > 2 * RELATIVE_GAP * damage else 0.0)


def curve(items: Sequence[Item], points: int = 64) -> list[Plan]:
    """Best plans from the smallest to the largest size: the Pareto curve of bytes against damage.

    Each plan is a corner of the linear relaxation and so exactly optimal for its own bytes, without a search.

    Args:
        items: as for `allocate`.
        points: at most so many plans, spread evenly over the bytes; few items have fewer corners.

    Returns:
        Plans with bytes strictly rising and damage strictly falling; ``budget_bytes`` equals ``bytes``.
    """
    rows = [_row(item) for item in items]
    picks = [0] * len(rows)
    steps = _steps(rows)
    sizes = [sum(row.bytes[0] for row in rows)]
    for step in steps:
        sizes.append(sizes[-1] + rows[step.row].bytes[step.end] - rows[step.row].bytes[step.start])
    wanted = _spread(sizes, points)
    plans = [_plan(items, rows, picks, sizes[0], 0.0)] if 0 in wanted else []
    for number, step in enumerate(steps, start=1):
        picks[step.row] = step.end
        if number in wanted:
            plans.append(_plan(items, rows, picks, sizes[number], 0.0))
    return plans


def smallest_bytes(items: Sequence[Item]) -> int:
    """The bytes of the smallest plan: the least budget that `allocate` accepts."""
    return sum(min(option.bytes for option in item.options) for item in items)


def _row(item: Item) -> _Row:
    if not item.options or len(item.options) != len(item.damage):
        have = f"{len(item.options)} options and {len(item.damage)} damages"
        raise InputError(f"{item.name} has {have}; expected as many of each, and at least one")
    for option, damage in zip(item.options, item.damage, strict=True):
        if not math.isfinite(damage):
            raise InputError(
                f"{item.name}: the damage at {option.bits} bits, group size {option.group_size} is {damage}, "
                f"expected a finite number of nats; look for NaN or infinite weights in this tensor"
            )
    order = sorted(range(len(item.options)), key=lambda i: (item.options[i].bytes, item.damage[i], i))
    kept: list[int] = []
    for i in order:
        if not kept or max(item.damage[i], 0.0) < max(item.damage[kept[-1]], 0.0):
            kept.append(i)
    return _Row(tuple(item.options[i].bytes for i in kept), tuple(max(float(item.damage[i]), 0.0) for i in kept), tuple(kept))


def _hull(row: _Row) -> list[int]:
    """Positions on the lower convex hull of (bytes, damage)."""
    hull: list[int] = []
    for i in range(len(row.bytes)):
        while len(hull) >= 2 and _rate(row, hull[-2], hull[-1]) <= _rate(row, hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull


def _rate(row: _Row, start: int, end: int) -> float:
    return (row.damage[start] - row.damage[end]) / (row.bytes[end] - row.bytes[start])


def _steps(rows: Sequence[_Row]) -> list[_Step]:
    """All hull steps of all items, the best rate first; within an item they come in order by convexity."""
    steps = []
    for number, row in enumerate(rows):
        hull = _hull(row)
        steps += [_Step(_rate(row, a, b), number, a, b) for a, b in pairwise(hull)]
    return sorted(steps, key=lambda step: (-step.rate, step.row, step.start))


def _relax(rows: Sequence[_Row], budget: int) -> _Relaxation:
    """Solve the linear relaxation and round it down to a feasible plan."""
    picks = [0] * len(rows)
    left = budget - sum(row.bytes[0] for row in rows)
    price, blocked = 0.0, set[int]()
    bound = 0.0
    for step in _steps(rows):
        cost = rows[step.row].bytes[step.end] - rows[step.row].bytes[step.start]
        if step.row not in blocked and cost <= left:
            picks[step.row] = step.end
            left -= cost
            continue
        if not blocked:
            price = step.rate
            bound = _damage(rows, picks) - price * left
        blocked.add(step.row)
    return _Relaxation(price, bound, _fill(rows, picks, budget))


def _fill(rows: Sequence[_Row], picks: Sequence[int], budget: int) -> list[int]:
    """Spend left-over bytes on single upgrades, each time the one that saves most, until none fits."""
    filled = list(picks)
    left = budget - _bytes(rows, filled)
    while True:
        best, best_gain = None, 0.0
        for number, row in enumerate(rows):
            here = filled[number]
            for there in range(len(row.bytes) - 1, here, -1):
                if row.bytes[there] - row.bytes[here] <= left:  # the largest that fits saves most
                    gain = row.damage[here] - row.damage[there]
                    if gain > best_gain:
                        best, best_gain = (number, there), gain
                    break
        if best is None:
            return filled
        number, there = best
        left -= rows[number].bytes[there] - rows[number].bytes[filled[number]]
        filled[number] = there


def _solve(rows: Sequence[_Row], relaxed: _Relaxation, budget: int) -> tuple[list[int], float]:
    """Close the distance between the bounds; the best plan found and the lower bound proven for it."""
    first = relaxed.picks
    distance = _damage(rows, first) - relaxed.bound
    noise = 1e-13 * max(_damage(rows, first), max(row.damage[0] for row in rows))
    if distance <= max(RELATIVE_GAP * _damage(rows, first), noise):
        return first, relaxed.bound
    open_rows: list[tuple[int, list[int], list[float]]] = []
    settled = list(first)
    for number, row in enumerate(rows):
        priced = [d + relaxed.price * b for d, b in zip(row.damage, row.bytes, strict=True)]
        least = min(priced)
        alive = [i for i, value in enumerate(priced) if value - least <= distance + noise]
        settled[number] = alive[0]
        if len(alive) > 1:
            open_rows.append((number, alive, [(priced[i] - least) / distance for i in alive]))
    if not open_rows:
        return first, relaxed.bound
    room = budget - _bytes(rows, settled)
    tolerance = min(0.5, RELATIVE_GAP * _damage(rows, first) / distance)
    for _ in range(_TIGHTENINGS):
        answer = _milp(rows, open_rows, room, relaxed.price / distance, tolerance)
        if answer is None:
            return first, relaxed.bound
        chosen, excess = answer
        picks = list(settled)
        for (number, alive, _reduced), position in zip(open_rows, chosen, strict=True):
            picks[number] = alive[position]
        over = _bytes(rows, picks) - budget
        if over <= 0:
            better = picks if _damage(rows, picks) < _damage(rows, first) else first
            return better, relaxed.bound + excess * distance
        room -= over  # HiGHS is exact to 1e-6 of a row, the budget is exact in bytes
    return first, relaxed.bound


def _milp(
    rows: Sequence[_Row],
    open_rows: Sequence[tuple[int, list[int], list[float]]],
    room: int,
    unused_cost: float,
    tolerance: float,
) -> tuple[list[int], float] | None:
    """HiGHS on the reduced problem: a position per open row and the proven lower bound, None if nothing was found."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    sizes = [[rows[n].bytes[i] - rows[n].bytes[alive[0]] for i in alive] for n, alive, _ in open_rows]
    unit = math.gcd(*(size for row in sizes for size in row))
    costs = [cost for _, _, reduced in open_rows for cost in reduced] + [unused_cost * unit]
    count = len(costs)
    weights = np.array([size // unit for row in sizes for size in row] + [1], dtype=float)
    owner = np.repeat(np.arange(len(open_rows)), [len(row) for row in sizes])
    one_each = csr_matrix((np.ones(count - 1), (owner, np.arange(count - 1))), shape=(len(open_rows), count))
    capacity = room // unit
    # The last column counts unused units: with it the objective is the distance above the lower bound.
    whole = np.append(np.ones(count - 1), 0)
    top = np.append(np.ones(count - 1), max(capacity, 0))
    result = milp(
        np.array(costs),
        integrality=whole,
        bounds=Bounds(np.zeros(count), top),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(csr_matrix(weights[None, :]), capacity, capacity),
        ],
        options={"mip_rel_gap": tolerance, "node_limit": NODE_LIMIT},
    )
    if result.x is None:
        return None
    chosen, at = [], 0
    for row in sizes:
        chosen.append(int(np.argmax(result.x[at : at + len(row)])))
        at += len(row)
    proven = result.mip_dual_bound
    return chosen, max(float(proven), 0.0) if proven is not None and math.isfinite(proven) else 0.0


def _bytes(rows: Sequence[_Row], picks: Sequence[int]) -> int:
    return sum(row.bytes[pick] for row, pick in zip(rows, picks, strict=True))


def _damage(rows: Sequence[_Row], picks: Sequence[int]) -> float:
    return math.fsum(row.damage[pick] for row, pick in zip(rows, picks, strict=True))


def _plan(items: Sequence[Item], rows: Sequence[_Row], picks: Sequence[int], budget: int, gap: float) -> Plan:
    choices = []
    for item, row, pick in zip(items, rows, picks, strict=True):
        option = item.options[row.index[pick]]
        choices.append(Choice(item.name, option.bits, option.group_size, option.bytes, row.damage[pick]))
    params = sum(item.params for item in items)
    return Plan(tuple(choices), budget, _bytes(rows, picks), _damage(rows, picks), params, gap)


def _spread(sizes: Sequence[int], points: int) -> set[int]:
    """Positions in ``sizes`` nearest to ``points`` even sizes, both ends included."""
    if len(sizes) <= points:
        return set(range(len(sizes)))
    first, last = sizes[0], sizes[-1]
    targets = [first + (last - first) * k / max(points - 1, 1) for k in range(points)]
    return {min(range(len(sizes)), key=lambda i: abs(sizes[i] - target)) for target in targets}


def impossible(items: Sequence[Item], budget: int) -> str:
    """What to say of a budget below the smallest plan."""
    params, smallest = max(sum(item.params for item in items), 1), smallest_bytes(items)
    stuck = sum(all(option.bits == UNQUANTIZED_BITS for option in item.options) for item in items)
    why = f" ({stuck} of {len(items)} tensors have no choice but bf16)" if stuck else ""
    return (
        f"a budget of {budget} bytes ({8 * budget / params:.3f} bits per weight) for the quantized tensors "
        f"cannot be met: the smallest possible is {smallest} bytes ({8 * smallest / params:.3f} bits per weight){why}; "
        f"raise the budget or allow fewer bits or {'other' if stuck else 'larger'} groups"
    )
