"""`optiq compare`: from the command to the JSON, and the refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optiq.cli.main import main


def test_a_model_beside_itself(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", str(tiny_model), "--reference", str(tiny_model), "--rows", "1", "--length", "16", "--texts", "0"]
    assert main([*words, "--tokens", "--json", "--events", "quiet", "-o", str(tmp_path / "c.json")]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((tmp_path / "c.json").read_text()) and data["kind"] == "optiq-compare"
    assert data["models"][0]["kl"]["mean"] < 1e-6 and len(data["tokens"]["texts"]) == data["text"]["documents"] == 6
    assert main([*words, "--events", "quiet"]) == 0
    shown = capsys.readouterr().out
    assert "20,668,360" in shown and "(reference)" in shown and "furthest" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "compare takes two models at least, given 1"),
        (["a", "b", "--rows", "0"], "--rows is 0, expected a whole number of at least 1"),
        (["a", "b", "--max-tokens", "0"], "--max-tokens is 0, expected a whole number of at least 1"),
    ],
)
def test_bad_arguments_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
