"""`optiq bench --kv-curve`: rows, divergences, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optiq.cli.main import main
from optiq.errors import InputError
from optiq.generate import curve

TINY = Path(__file__).parents[2] / "examples" / "tiny-qwen3.5"


def test_lengths_go_as_far_as_the_model_and_the_user_say() -> None:
    assert curve.lengths(4096) == (1024, 1536, 2304, 3072, 4096)
    assert curve.lengths(None)[-1] == 65536
    assert curve.lengths(262144, 9000)[-1] == 8192
    assert curve.lengths(512) == ()


def test_a_text_is_repeated_out_of_step() -> None:
    ids = list(range(1000))
    found = curve.repeated(ids, 2500)
    assert found[:1000] == ids and len(found) == 2500 and found[1000:2000] != ids and sorted(found[1000:2000]) == ids


def test_the_files_and_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "bench",
        str(TINY),
        "--kv-curve",
        "-o",
        str(tmp_path),
        "--kv-longest",
        "1024",
        "--repeats",
        "1",
        "--generate-lengths",
        "3",
    ]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["kind"]: row for row in result["rows"]}
    assert list(rows)[0] == "fp16" and {"tq3", "tq4", "affine4", "affine8", "best3", "best4"} < set(rows)
    assert rows["fp16"]["kl_nats"] == 0 and rows["fp16"]["speed_over_fp16"] == 1
    assert rows["tq3"]["cache_bytes"] < rows["tq4"]["cache_bytes"] < rows["fp16"]["cache_bytes"]
    assert 0 < rows["affine8"]["kl_nats"] < rows["affine4"]["kl_nats"] and 0 < rows["tq4"]["kl_nats"] < rows["tq3"]["kl_nats"]
    folder = tmp_path / "benchmarks" / "kv"
    lines = (folder / "summary_rows.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(rows) and lines[0].split("\t")[0] == "kind"
    assert len((folder / "raw_rows.tsv").read_text().splitlines()) == 1 + len(rows)
    assert json.loads((folder / "run_metadata.json").read_text())["lengths"] == [1024]
    assert "| 1024 |" in (folder / "README.md").read_text()
    assert (tmp_path / "assets" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "assets" / "curve.svg").read_bytes()


def test_what_means_nothing_beside_a_curve_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(TINY), "--kv-curve", "-o", str(tmp_path), "--kv-bits", "4"]) == 2
    assert "leave --kv-bits out" in capsys.readouterr().err
    assert main(["bench", str(TINY), "--kv-curve", "-o", str(tmp_path), "--kv-longest", "9"]) == 2
    assert "--kv-longest is 9, expected at least 1024" in capsys.readouterr().err
    with pytest.raises(InputError, match="at least 2 tokens"):
        curve.CurvePlan((1,))
