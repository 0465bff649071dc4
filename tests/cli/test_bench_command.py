"""`optiq bench`: the table, the file, the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import random_models
from optiq.cli.main import main


def test_table_file_and_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, saved = random_models.write(tmp_path / "m", "qwen3_5-tied"), tmp_path / "before.json"
    words = ["bench", str(model), "--prompt-lengths", "4,600", "--generate-lengths", "1,3", "--repeats", "2"]
    assert main([*words, "--save", str(saved)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("model    m, weights ") and lines[2].startswith("kernels  ")
    assert [line.split()[:2] for line in lines[-4:]] == [["4", "1"], ["4", "3"], ["600", "1"], ["600", "3"]]
    assert "warning: 603 tokens (prompt and reply) are more than the 512 that this model was made for" in captured.err

    result = json.loads(saved.read_text())
    assert (result["schema"], result["kind"], result["repeats"]) == (1, "optiq-bench", 2)
    result["model"]["name"] = "another"
    saved.write_text(json.dumps(result))
    words = ["bench", str(model), "--prompt-lengths", "4,5", "--generate-lengths", "3", "--repeats", "1"]
    assert main([*words, "--compare", str(saved)]) == 0
    captured = capsys.readouterr()
    assert f"{saved} differs in model name; its ratios compare unlike things" in captured.err
    *_, known, unknown, empty, legend = captured.out.splitlines()
    assert known.count("x") == 2 and unknown.split()[-2:] == ["-", "-"] and (empty, legend) == ("", f"[1] {saved}")

    assert main([*words, "--compare", str(saved), "--json", "--events", "quiet"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["decode_tokens_per_s"] is None for row in data["compared"][0]["rows"]] == [False, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt-lengths", "x"], "argument --prompt-lengths: 'x', expected whole numbers by comma, for instance 128,512"),
        (["--prompt-lengths", "0"], "--prompt-lengths is 0, expected whole numbers of at least 1"),
        (["--repeats", "0"], "--repeats is 0, expected a whole number of at least 1"),
        (["--compare", "/no/file"], "no bench result at /no/file"),
    ],
)
def test_bad_arguments_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "/no/model", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"optiq: error: {message}")
