"""What fewer bits cost in each layer's keys and values, as a picture over the depth of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optiq.lab.caching import SIDES, Damage
from optiq.lab.parts import charts


def cache_damage(rows: Sequence[Damage]) -> None:
    """Draw it: a column per layer, a row per side and width."""
    widths = sorted({bits for row in rows for bits in row.keys})
    names = [f"{side}, {bits} bits" for side in SIDES for bits in widths]
    cells, values = [], []
    for column, row in enumerate(rows):
        for at, (side, bits) in enumerate((side, bits) for side in SIDES for bits in widths):
            damage = getattr(row, side).get(bits, 0.0)
            value = math.log10(max(damage, 1e-12))
            values.append(value)
            cells.append((column, at, value, f"layer {row.layer}, {side} at {bits} bits: {damage:.3g}"))
    scale = charts.scale_map(min(values, default=0), max(values, default=1), ("log10 of nats per token", ""))
    content = charts.heatmap(names, [str(row.layer) for row in rows], cells, visualMap=scale)
    made = charts.Chart(content, "Damage of packed keys and values by layer and width", tall=True)
    made.style(f"height: {150 + 26 * len(names)}px")
