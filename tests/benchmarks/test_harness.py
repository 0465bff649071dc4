"""The benchmarks' shared parts: what counts as met, what is written, how sizes are read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import harness  # noqa: E402
from harness import Bar  # noqa: E402
from storage import storage  # noqa: E402


def _bar(figure: float | None, bar: float, direction: str, interval: tuple[float, float] | None = None) -> Bar:
    return Bar("1.x", "what", figure, "", bar, direction, "baseline", interval)


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (_bar(0.3, 0.35, "<="), True),
        (_bar(0.36, 0.35, "<="), False),
        (_bar(0.3, 0.35, "<=", (0.28, 0.35)), True),
        (_bar(0.3, 0.35, "<=", (0.28, 0.36)), False),
        (_bar(3.0, 3.0, ">="), True),
        (_bar(4.0, 3.0, ">=", (2.9, 5.0)), False),
        (_bar(None, 3.0, "<="), False),
    ],
)
def test_a_bar_is_met_by_the_unfavourable_end(row: Bar, met: bool) -> None:
    assert row.met is met


def test_result_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    path = harness.write_result("some", [_bar(0.3, 0.35, "<=", (0.2, 0.4))], {"why": 1})
    written = json.loads(path.read_text())
    assert set(written) == {"schema", "commit", "machine", "date", "bars", "raw"}
    assert written["bars"][0]["met"] is False
    assert "NOT MET" in capsys.readouterr().out
    assert list(harness.read_results(tmp_path)) == ["some"]


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"schema": 7}))
    with pytest.raises(SystemExit, match="schema 7, expected 1"):
        harness.read_results(tmp_path)


def test_every_committed_row_says_what_it_measures() -> None:
    for name, result in harness.read_results().items():
        for row in result["bars"]:
            assert row["id"] and row["what"] and row["baseline"], (name, row)
            fields = {key: row[key] for key in row if key != "met"}
            fields["interval"] = tuple(row["interval"]) if row["interval"] else None
            assert Bar(**fields).met == row["met"], (name, row["id"])


def test_storage_counts_scales_and_dense_matrices(tmp_path: Path) -> None:
    import mlx.core as mx

    codes, scales, biases = mx.quantize(mx.random.normal((8, 128)).astype(mx.bfloat16), group_size=64, bits=4)
    tensors = {"a.weight": codes, "a.scales": scales, "a.biases": biases, "norm.weight": mx.ones((128,), mx.bfloat16)}
    (tmp_path / "config.json").write_text(json.dumps({"quantization": {"bits": 4, "group_size": 64}}))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    assert storage(tmp_path).bpw == 4.5
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors | {"b.weight": mx.ones((8, 128), mx.bfloat16)})
    kept = storage(tmp_path)
    assert kept.bpw == (4.5 + 16) / 2
    assert kept.file_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert kept.side_bytes == {"config.json": (tmp_path / "config.json").stat().st_size}
