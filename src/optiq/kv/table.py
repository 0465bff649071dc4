"""The damages of a model's caches on disk, and the budgets that they allow.

kv_sensitivity.json    damage by layer, side and width: read again, other budgets need no second measurement
kv_curve.json          the Pareto curve of bytes per token against predicted damage

Data in and out: `LayerDamage`s. Knows no model beyond the places of its caches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiq.errors import FormatError, InputError
from optiq.kv import allocation
from optiq.kv.recipe import Recipe
from optiq.kv.sensitivity import LayerDamage
from optiq.models.caches import KeyValueLayer
from optiq.plan.allocate import curve

SENSITIVITY, CURVE = "kv_sensitivity.json", "kv_curve.json"
POINTS = 64


def entry(found: LayerDamage) -> dict[str, Any]:
    """One layer of kv_sensitivity.json."""
    return {
        "layer_idx": found.layer.index,
        "layer_name": found.name,
        "sensitivities": {str(bits): found.keys[bits] + found.values[bits] for bits in sorted(found.keys)},
        "n_kv_heads": found.heads,
        "head_dim": found.k_width,
        "v_head_dim": found.v_width,
        "keys": {str(bits): found.keys[bits] for bits in sorted(found.keys)},
        "values": {str(bits): found.values[bits] for bits in sorted(found.values)},
    }


def read(folder: Path, layers: Sequence[KeyValueLayer]) -> list[LayerDamage]:
    """The damages that an earlier run measured.

    Args:
        folder: that it wrote.
        layers: of the model.

    Raises:
        InputError: there are none, or they are of another model.
        FormatError: they cannot be read.
    """
    file = folder / SENSITIVITY
    if not file.is_file():
        raise InputError(f"{file} is not there; give --from a directory that optiq kv-cache wrote")
    have = [layer.index for layer in layers]
    try:
        rows = json.loads(file.read_bytes())
        said = [row["layer_idx"] for row in rows]
        if said != have:
            raise InputError(f"{file} is of layers {said}, this model has caches in {have}; it was made for another model")
        return [_layer(layer, row) for layer, row in zip(layers, rows, strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{file} lacks or garbles a field: {error!r}; measure again with optiq kv-cache") from None


def _layer(layer: KeyValueLayer, row: Mapping[str, Any]) -> LayerDamage:
    sides = ({int(bits): float(damage) for bits, damage in row[side].items()} for side in ("keys", "values"))
    width = int(row["head_dim"])
    return LayerDamage(layer, str(row["layer_name"]), int(row["n_kv_heads"]), width, int(row.get("v_head_dim", width)), *sides)


def mean_bits(found: Sequence[LayerDamage], recipes: Mapping[int, Recipe]) -> float:
    """Mean width of codes over all keys and values."""
    pairs = [(recipes[e.layer.index], e) for e in found]
    bits = sum(e.heads * (r.k_bits * e.k_width + r.v_bits * e.v_width) for r, e in pairs)
    return bits / sum(e.heads * (e.k_width + e.v_width) for e in found)


def full_bytes(found: Sequence[LayerDamage]) -> int:
    """Bytes per token of the same layers in 16 bits."""
    return sum(2 * one.heads * (one.k_width + one.v_width) for one in found)


def curve_json(found: Sequence[LayerDamage], base: Recipe) -> dict[str, Any]:
    """kv_curve.json: the best plans from the smallest to the largest."""
    points = []
    for plan in curve(allocation.make_items(found, base), POINTS):
        recipes = allocation.recipes(plan, found, base)
        points.append(
            {
                "bits": mean_bits(found, recipes),
                "bytes_per_token": plan.bytes,
                "predicted_kl": plan.damage,
                "layers": {str(index): [recipe.k_bits, recipe.v_bits] for index, recipe in recipes.items()},
            }
        )
    return {"schema": 1, "scheme": base.scheme, "full_bytes_per_token": full_bytes(found), "points": points}
