"""The damage table on disk (`sensitivity.json`) as items and back, and a reader for `plan.json`.

Reads what this program writes (schema 1: exact options) and what the reference product published (no schema, no
options: damages at one group size, from which the options are made). Knows no MLX; docs/formats.md has the fields.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optiq import files
from optiq.errors import FormatError, InputError
from optiq.plan.size import affine_bytes
from optiq.plan.types import Item, Option, Plan

SCHEMA = 1
SENSITIVITY_NAMES = ("optiq/sensitivity.json", "optiq_sensitivity.json", "sensitivity.json")
PLAN_NAMES = ("optiq/plan.json", "plan.json")
METADATA_NAMES = ("optiq/metadata.json", "optiq_metadata.json")


@dataclass(frozen=True)
class Table:
    """A damage table: the items, and the rest of the file (base model, method, tokens …) as it was found."""

    items: tuple[Item, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of tensors that no plan changes; 0 if the table does not say."""
        return int(self.facts.get("fixed_bytes", 0))

    @property
    def header_bytes(self) -> int:
        """Bytes of safetensors headers; 0 if the table does not say."""
        return int(self.facts.get("header_bytes", 0))


def load(path: str | os.PathLike[str]) -> Table:
    """Read a damage table from a file, or from the model directory that holds it.

    Raises:
        InputError: there is none at ``path``.
        FormatError: unreadable, another schema, or fields missing.
    """
    file = _find(Path(path), SENSITIVITY_NAMES, "sensitivity table")
    data = files.read_json(file, what="sensitivity table", schema=None)
    if data.get("schema", SCHEMA) != SCHEMA:
        raise FormatError(f"the sensitivity table {file} has schema {data['schema']}, expected {SCHEMA}; convert again")
    layers = data.get("layers")
    if not isinstance(layers, list) or not layers:
        raise FormatError(f"the sensitivity table {file} has no layers; convert again")
    try:
        items = tuple(_item(layer, data) for layer in layers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the sensitivity table {file} lacks or garbles a field: {error!r}; convert again") from None
    return Table(items, {key: value for key, value in data.items() if key not in ("schema", "layers")})


def save(path: str | os.PathLike[str], items: Sequence[Item], facts: Mapping[str, Any]) -> None:
    """Write a damage table; ``facts`` are the fields beside the layers (`base_model`, `method`, `tokens` …)."""
    files.write_json(path, as_json(items, facts))


def as_json(items: Sequence[Item], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `sensitivity.json`.

    ``sensitivities`` holds, per width, the damage at ``facts["group_size"]`` (default 64) or the nearest group size,
    in the shape that readers of the reference product's files expect.
    """
    group_size = int(facts.get("group_size", 64))
    return {"schema": SCHEMA, **facts, "layers": [_layer(item, group_size) for item in items]}


def read_plan(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The `plan.json` of a model directory (or that file itself), None where a directory has none.

    Raises:
        InputError: no such file or directory.
        FormatError: unreadable or another schema.
    """
    place = Path(path)
    if place.is_dir():
        found = next((place / name for name in PLAN_NAMES if (place / name).is_file()), None)
        return None if found is None else files.read_json(found, what="plan", schema=SCHEMA)
    return files.read_json(place, what="plan", schema=SCHEMA)


def read_metadata(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata of a converted directory, ours or the reference product's (new or old place), None without one.

    Raises:
        FormatError: unreadable.
    """
    found = next((Path(directory) / name for name in METADATA_NAMES if (Path(directory) / name).is_file()), None)
    return None if found is None else files.read_json(found, what="metadata", schema=None)


def choices_json(plan: Plan, items: Sequence[Item], extra: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ``choices`` of `plan.json`; ``extra`` adds fields per item name (`encoder`, `block`)."""
    return [
        {
            "name": choice.name,
            "kind": item.kind,
            "shape": list(item.shape),
            "bits": choice.bits,
            "group_size": choice.group_size,
            "bytes": choice.bytes,
            "damage_nats": choice.damage,
            **extra.get(choice.name, {}),
        }
        for choice, item in zip(plan.choices, items, strict=True)
    ]


def _find(path: Path, names: Sequence[str], what: str) -> Path:
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path} holds no {what} ({names[0]}); give a directory that `optiq convert` wrote, or the file")
    return path


def _item(layer: Mapping[str, Any], table: Mapping[str, Any]) -> Item:
    name, kind = str(layer["layer_name"]), str(layer.get("kind", "linear"))
    if "options" not in layer:
        return _foreign_item(name, kind, layer, int(table.get("group_size") or 64))
    options = tuple(Option(int(o["bits"]), int(o["group_size"]), int(o["bytes"])) for o in layer["options"])
    damage = tuple(float(o["damage_nats"]) for o in layer["options"])
    return Item(name, kind, tuple(int(axis) for axis in layer["shape"]), options, damage)


def _foreign_item(name: str, kind: str, layer: Mapping[str, Any], group_size: int) -> Item:
    """An item without shape: as one long row, whose bytes are the same."""
    shape = (int(layer["param_count"]),)
    measured = sorted((int(bits), float(nats)) for bits, nats in layer["sensitivities"].items())
    options = tuple(Option(bits, group_size, affine_bytes(shape, bits, group_size)) for bits, _ in measured)
    return Item(name, kind, shape, options, tuple(nats for _, nats in measured))


def _layer(item: Item, group_size: int) -> dict[str, Any]:
    nearest: dict[int, tuple[int, float]] = {}
    for option, damage in zip(item.options, item.damage, strict=True):
        distance = abs(option.group_size - group_size)
        if option.bits not in nearest or distance < nearest[option.bits][0]:
            nearest[option.bits] = (distance, damage)
    return {
        "layer_name": item.name,
        "kind": item.kind,
        "shape": list(item.shape),
        "param_count": item.params,
        "sensitivities": {str(bits): damage for bits, (_, damage) in sorted(nearest.items())},
        "options": [
            {"bits": option.bits, "group_size": option.group_size, "bytes": option.bytes, "damage_nats": damage}
            for option, damage in zip(item.options, item.damage, strict=True)
        ],
        "metadata": {},
    }
