"""The sensitivity picture: what each tensor would cost at a width, over the depth of the model."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from nicegui import ui

from optiq.lab.parts import charts
from optiq.plan import table
from optiq.plan.types import Item

GROUP_SIZE = 64  # widths are compared at one group size, the usual one where it was measured
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def sensitivity(path: Path) -> None:
    """Draw the table at ``path``, with a choice of widths.

    Raises:
        OptiqError: it cannot be read.
    """
    found = table.load(path)
    widths = sorted({option.bits for item in found.items for option in item.options})
    first = 4 if 4 in widths else widths[0]
    unit = "log10 of nats per token" if found.facts.get("metric") == "kl_nats_per_token" else "log10 of a relative score"
    picture = charts.Chart(_picture(found.items, first, unit), f"Damage of every tensor at {first} bits over depth", tall=True)

    def show(bits: int) -> None:
        picture.draw(_picture(found.items, bits, unit))

    if len(widths) > 1:
        with ui.element("div").classes("bar"):
            choice = ui.toggle(
                {bits: f"{bits} bits" for bits in widths}, value=first, on_change=lambda event: show(int(event.value))
            )
            choice.props('no-caps unelevated toggle-color=primary aria-label="Width that is shown"')


def _picture(items: tuple[Item, ...], bits: int, unit: str) -> dict[str, Any]:
    places = [(_place(item.name), item) for item in items]
    roles = list(dict.fromkeys(role for (role, _), _ in places))
    last = max((layer for (_, layer), _ in places if layer is not None), default=0)
    cells, values = [], []
    for (role, layer), item in places:
        damage = _damage(item, bits)
        if damage is None:
            continue
        value = math.log10(max(damage, 1e-12))
        values.append(value)
        cells.append((0 if layer is None else layer + 1, roles.index(role), value, f"{item.name}: {damage:.3g}"))
    scale = charts.scale_map(min(values, default=0), max(values, default=1), (unit, ""))
    return charts.heatmap(roles, ["–", *map(str, range(last + 1))], cells, visualMap=scale)


def _damage(item: Item, bits: int) -> float | None:
    """At the group size nearest to the usual one."""
    fitting = [
        (abs(option.group_size - GROUP_SIZE), damage)
        for option, damage in zip(item.options, item.damage, strict=True)
        if option.bits == bits
    ]
    return min(fitting)[1] if fitting else None


def _place(name: str) -> tuple[str, int | None]:
    """The part of a tensor's name behind its layer, and the layer."""
    found = _LAYER.search(name)
    if found is None:
        return name.rpartition(".")[2], None
    return name[found.end() :], int(found.group(1))
