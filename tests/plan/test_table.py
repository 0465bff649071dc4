"""The damage table on disk: a round trip, the reference product's form, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optiq.errors import FormatError, InputError
from optiq.plan import table
from optiq.plan.allocate import allocate
from optiq.plan.options import make_options
from optiq.plan.types import Item


def items() -> list[Item]:
    found = []
    for name, kind, shape in [
        ("model.embed_tokens", "embedding", (96, 128)),
        ("model.layers.0.up", "linear", (64, 128)),
    ]:
        options = make_options(shape, (2, 4, 8), (32, 64, 128))
        found.append(Item(name, kind, shape, options, tuple(2.0**-option.bits / option.group_size for option in options)))
    return found


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "optiq" / "sensitivity.json"
    table.save(path, items(), {"base_model": "x/y", "group_size": 64, "fixed_bytes": 11, "header_bytes": 7})
    for place in (path, tmp_path):
        loaded = table.load(place)
        assert list(loaded.items) == items()
        assert loaded.facts["base_model"] == "x/y" and (loaded.fixed_bytes, loaded.header_bytes) == (11, 7)
    layer = json.loads(path.read_text())["layers"][0]
    assert layer["sensitivities"]["4"] == 2.0**-4 / 64 and layer["param_count"] == 96 * 128


def test_reads_the_form_without_options(tmp_path: Path) -> None:
    layers = [{"layer_name": "a", "sensitivities": {"4": 0.5, "8": 0.1}, "param_count": 6400, "metadata": {}}]
    data = {"base_model": "b", "candidate_bits": [4, 8], "group_size": 64, "metric": "kl", "layers": layers}
    (tmp_path / "optiq_sensitivity.json").write_text(json.dumps(data))
    (item,) = table.load(tmp_path).items
    assert [(option.bits, option.bytes) for option in item.options] == [(4, 3600), (8, 6800)]
    assert item.params == 6400 and item.damage == (0.5, 0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 2, "layers": []}', "has schema 2, expected 1"),
        ('{"schema": 1}', "has no layers"),
        ('{"schema": 1, "layers": [{"layer_name": "a"}]}', "lacks or garbles a field: KeyError"),
        ('{"schema": 1, "layers": [3]}', "lacks or garbles a field"),
        ("{", "is not valid JSON"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "sensitivity.json").write_text(content)
    with pytest.raises(FormatError, match=message):
        table.load(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no sensitivity table"):
        table.load(tmp_path)
    with pytest.raises(InputError, match="no sensitivity table at"):
        table.load(tmp_path / "gone.json")


def test_plan_and_metadata_are_found_in_both_places(tmp_path: Path) -> None:
    assert table.read_plan(tmp_path) is None and table.read_metadata(tmp_path) is None
    (tmp_path / "optiq_metadata.json").write_text('{"method": "old"}')
    assert table.read_metadata(tmp_path) == {"method": "old"}
    (tmp_path / "optiq").mkdir()
    (tmp_path / "optiq/plan.json").write_text('{"schema": 1, "bpw": 4.5}')
    found = table.read_plan(tmp_path)
    assert found is not None and found["bpw"] == 4.5


def test_choices_carry_item_and_extra_fields() -> None:
    plan = allocate(items(), 10**6)
    extra: dict[str, dict[str, Any]] = {"model.layers.0.up": {"encoder": "gptq", "block": 0}}
    first, second = table.choices_json(plan, items(), extra)
    assert first["kind"] == "embedding" and first["shape"] == [96, 128] and "encoder" not in first
    assert second["encoder"] == "gptq" and second["bytes"] == plan.choices[1].bytes
