"""Damages and a mean width to recipes by layer: the items of the exact solver (`optiq.plan`) and what its plan means.

Keys and values of a layer are an item each; in scheme `affine`, whose plain entries have one width, a layer is one. The cost of
an option is its bytes per token; the budget is a mean width over all keys and values, scales on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import mlx.core as mx

from optiq.errors import InputError
from optiq.kv.recipe import Recipe
from optiq.kv.rows import key_rows, value_rows
from optiq.kv.sensitivity import SIDES, LayerDamage
from optiq.plan.allocate import allocate
from optiq.plan.types import Item, Option, Plan


def solve(found: Sequence[LayerDamage], base: Recipe, target_bits: float) -> tuple[Plan, dict[int, Recipe]]:
    """The plan of least damage whose mean width is at most `target_bits`, and its recipes by layer.

    Raises:
        InputError: the target is below the smallest width.
    """
    widths = sorted(found[0].keys)
    if target_bits < widths[0]:
        raise InputError(
            f"--target-bits {target_bits:g} is below {widths[0]}, the smallest of --candidate-bits; lower one of them"
        )
    items = make_items(found, base)
    values = sum(item.params for item in items)
    scales = sum(item.options[0].bytes - item.params * item.options[0].bits // 8 for item in items)
    plan = allocate(items, int(Fraction(str(target_bits)) * values / 8) + scales)
    return plan, recipes(plan, found, base)


def make_items(found: Sequence[LayerDamage], base: Recipe) -> list[Item]:
    """The solver's items; bytes are per token of a packed sequence."""
    items = []
    for entry in found:
        if base.scheme == "affine":
            both = (_item(entry, side, base) for side in SIDES)
            items.append(_joined(entry, *both))
        else:
            items += [_item(entry, side, base) for side in SIDES]
    return items


def recipes(plan: Plan, found: Sequence[LayerDamage], base: Recipe) -> dict[int, Recipe]:
    """By layer index, what a plan chose."""
    bits: Mapping[str, int] = {choice.name: choice.bits for choice in plan.choices}

    def width(entry: LayerDamage, side: str) -> int:
        return bits[entry.name] if base.scheme == "affine" else bits[f"{entry.name}.{side}"]

    return {e.layer.index: replace(base, k_bits=width(e, "keys"), v_bits=width(e, "values")) for e in found}


def bytes_per_token(entry: LayerDamage, side: str, recipe: Recipe) -> int:
    """Of the packed keys, or values, of one layer: codes, scales and biases of all its heads."""
    make, width = (key_rows, entry.k_width) if side == "keys" else (value_rows, entry.v_width)
    return sum(int(part.nbytes) for part in make(recipe, entry.heads, width, mx.bfloat16).buffers(1, entry.heads, 1))


def _item(entry: LayerDamage, side: str, base: Recipe) -> Item:
    table, width = (entry.keys, entry.k_width) if side == "keys" else (entry.values, entry.v_width)
    options = tuple(
        Option(bits, base.group_size, bytes_per_token(entry, side, replace(base, k_bits=bits, v_bits=bits)))
        for bits in sorted(table)
    )
    return Item(f"{entry.name}.{side}", side, (entry.heads, width), options, tuple(table[bits] for bits in sorted(table)))


def _joined(entry: LayerDamage, keys: Item, values: Item) -> Item:
    """Keys and values at one width."""
    options = tuple(Option(a.bits, a.group_size, a.bytes + b.bytes) for a, b in zip(keys.options, values.options, strict=True))
    damage = tuple(a + b for a, b in zip(keys.damage, values.damage, strict=True))
    return Item(entry.name, "both", (entry.heads, entry.k_width + entry.v_width), options, damage)
