"""`optiq plan`: budgets of each kind, pins, the curve, and one clear line for what cannot be done."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from optiq.cli import plan as command
from optiq.errors import FormatError, InputError
from optiq.events import QUIET
from optiq.plan import table
from optiq.plan.options import make_options
from optiq.plan.types import Item


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """The receipts of a converted directory: eight layers, an embedding, and one tensor that nothing divides."""
    shapes = [("model.embed_tokens", "embedding", (512, 128)), ("odd", "linear", (64, 172))]
    shapes += [(f"model.layers.{i}.mlp.up_proj", "linear", (256, 128)) for i in range(8)]
    items = []
    for number, (name, kind, shape) in enumerate(shapes):
        options = make_options(shape, (2, 3, 4, 5, 6, 8), (32, 64, 128))
        damage = tuple(0.0 if option.bits == 16 else 10.0**-number * 4.0**-option.bits * option.group_size for option in options)
        items.append(Item(name, kind, shape, options, damage))
    place = tmp_path / "converted"
    table.save(place / "optiq/sensitivity.json", items, {"base_model": "org/tiny", "group_size": 64})
    bytes_ = {"quantized": 1, "fixed": 3000, "header": 1000, "total_files": 1}
    budget = {"kind": "bpw", "value": 6.0, "bytes": 1}
    (place / "optiq/plan.json").write_text(json.dumps({"schema": 1, "bytes": bytes_, "budget": budget, "choices": []}))
    return place


def solve(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert command.run(parse(*words, "--json"), QUIET) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    command.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_target_bpw_is_a_ceiling(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = solve(capsys, converted, "--target-bpw", 5)
    assert 4.97 < data["bpw"] <= 5 and data["budget"]["kind"] == "bpw"
    assert data["bytes"]["total_files"] == data["bytes"]["quantized"] + 4000
    assert any("in bf16: no group size" in note for note in data["notes"])
    assert next(choice for choice in data["choices"] if choice["name"] == "odd")["bits"] == 16


def test_budget_of_the_conversion_is_the_default(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert solve(capsys, converted)["budget"]["value"] == 6.0


def test_target_gb_counts_norms_and_headers(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = solve(capsys, converted, "--target-gb", 0.0002)
    assert data["budget"]["bytes"] == 196_000 and data["bytes"]["total_files"] <= 200_000


def test_like_spends_what_the_other_directory_spends(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    header = '{"a": {"dtype": "U8", "shape": [219896], "data_offsets": [0, 219896]}}'.ljust(96).encode()
    (other / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(219_896))
    (other / "mtp.safetensors").write_bytes(bytes(99_000))
    data = solve(capsys, converted, "--like", other)
    assert data["budget"] == {"kind": "like", "value": 220_000, "bytes": 216_000}
    assert 0.99 * 220_000 < data["bytes"]["total_files"] <= 220_000


def test_candidates_and_pins(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (converted, "--candidate-bits", "4,8", "--group-sizes", 64, "--keep", "embed_tokens=3")
    data = solve(capsys, *words, "--keep", "*.7.mlp.up_proj=16")
    by_name = {choice["name"]: choice for choice in data["choices"]}
    assert by_name["model.embed_tokens"]["bits"] == 3 and by_name["model.layers.7.mlp.up_proj"]["bits"] == 16
    rest = [by_name[f"model.layers.{i}.mlp.up_proj"] for i in range(7)]
    assert {choice["bits"] for choice in rest} <= {4, 8} and {choice["group_size"] for choice in rest} == {64}


def test_writes_plan_and_curve(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    data = solve(capsys, converted, "-o", tmp_path / "p.json", "--curve", tmp_path / "c.png")
    assert table.read_plan(tmp_path / "p.json") is not None
    curve = json.loads((tmp_path / "c.json").read_text())
    assert curve == data["curve"] and (tmp_path / "c.png").stat().st_size > 5000
    sizes = [point["bytes"] for point in curve["points"]]
    assert sizes == sorted(set(sizes))


def test_text_names_what_matters(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(parse(converted / "optiq/sensitivity.json", "--target-bpw", 4.5, "--curve"), QUIET) == 0
    text = capsys.readouterr().out
    for part in ("org/tiny", "4.5 bits per weight", "predicted KL", "bits per weight", "note: 1 tensor stays in bf16"):
        assert part in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target-bpw", 1), r"cannot be met: the smallest possible is \d+ bytes"),
        (("--target-bpw", -3), "must be a positive number"),
        (("--candidate-bits", "7"), "7 is not one of"),
        (("--keep", "nothing=4"), "fits no tensor"),
        (("--like", "/nowhere/at/all"), "is not there"),
        (("--curve", "c.gif"), r"its ending is \.gif"),
    ],
)
def test_clear_refusals(converted: Path, words: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        command.run(parse(converted, *words), QUIET)


def test_table_without_fixed_bytes_cannot_meet_gb(tmp_path: Path) -> None:
    options = make_options((64, 128), (4, 8), (64,))
    table.save(tmp_path / "s.json", [Item("a", "linear", (64, 128), options, (0.5, 0.1))], {})
    with pytest.raises(InputError, match="does not say how many bytes norms and headers take"):
        command.run(parse(tmp_path / "s.json", "--target-gb", 1), QUIET)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no sensitivity table"):
        command.run(parse(tmp_path), QUIET)
    (tmp_path / "sensitivity.json").write_text("not json")
    with pytest.raises(FormatError, match="is not valid JSON"):
        command.run(parse(tmp_path), QUIET)
