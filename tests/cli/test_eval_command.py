"""`optiq eval`: two models end to end, the files, the refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optiq import sandbox
from optiq.cli.main import main
from optiq.errors import ResourceError


def test_two_models_end_to_end(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(tiny_model), "--baseline", str(tiny_model), "--tasks", "hashhop", "--samples", "2", "-o", str(tmp_path)]
    words += ["--option", "hashhop.characters=200", "--option", "hashhop.max_tokens=4", "--option", "hashhop.hops=1+2"]
    assert main([*words, "--json", "--events", "quiet"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["models"][0]["tasks"]["hashhop"]["samples"] == 2 and data["models"][0]["fidelity"] is None
    assert data["paired"]["tiny-qwen3.5"]["hashhop"]["finding"] == "no difference shown"
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"report.json", "report.md", "report.html", "model/hashhop.jsonl", "baseline/hashhop.jsonl"}
    assert (tmp_path / "model" / "hashhop.jsonl").read_bytes() == (tmp_path / "baseline" / "hashhop.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "gsm"], "unknown task 'gsm'"),
        (["--tasks", "hashhop", "--option", "hops=1"], "--option is 'hops=1', expected TASK.NAME=VALUE"),
        (["--tasks", "hashhop", "--option", "mmlu.shots=1"], "--option is for task 'mmlu', which does not run"),
        (["--data", "/no/dir"], "no such directory: /no/dir"),
        (["--card"], "--card needs a model directory with README.md"),
        (["--served", "http://x/v1", "--card"], "--served scores one model as its server runs it"),
    ],
)
def test_bad_arguments_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "/no/model", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_programs_are_refused_where_nothing_isolates_them(
    tiny_model: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def refuse(*, unsafe: bool = False) -> None:
        asked.append(unsafe)
        raise ResourceError("no isolation here")

    monkeypatch.setattr(sandbox, "runner", refuse)
    words = ["eval", str(tiny_model), "--data", str(shared / "data" / "eval"), "-o", str(tmp_path / "out"), "--events", "quiet"]
    assert main([*words, "--tasks", "humaneval"]) == 2 and "no isolation here" in capsys.readouterr().err
    assert main([*words, "--tasks", "humaneval", "--unsafe-no-sandbox"]) == 2 and asked == [False, True]
    assert not (tmp_path / "out").exists()
