"""`optiq lora` from data to an adapter, and the messages on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_training import TINY, folder
from optiq.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    code = main(["lora", *map(str, words), "--json", "--events", "quiet"])
    return code, json.loads(capsys.readouterr().out)


def test_from_data_to_a_merged_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "data", 3, 1)
    _, checked = run(capsys, "check", TINY, "--data", data)
    assert checked["train"]["samples"] == 3 and checked["valid"]["samples"] == 1 and len(checked["shown"]) == 1
    pieces = checked["shown"][0]["pieces"]
    assert [carries for _, carries in pieces] == [False, True] and "stone" in pieces[1][0]
    words = ["train", TINY, "--data", data, "--preset", "reference", "--rank", "2", "--iters", "2", "--max-seq-length", "48"]
    code, done = run(capsys, *words, "-o", tmp_path / "a")
    assert code == 0 and set(done["ranks"].values()) == {8} and done["steps"] == 2
    assert {name.rpartition(".")[2] for name in done["ranks"]} == {"q_proj", "v_proj"}
    assert (tmp_path / "a" / "loss.png").read_bytes().startswith(b"\x89PNG")
    _, info = run(capsys, "info", tmp_path / "a")
    assert info["parameters"] == done["parameters"] and info["training"]["steps"] == 2
    _, merged = run(capsys, "merge", tmp_path / "a", tmp_path / "a", "--model", TINY, "-o", tmp_path / "both")
    assert merged["rank"] == 16
    code, failed = run(capsys, *words, "-o", tmp_path / "a")
    assert code == 2 and "holds an adapter already" in failed["error"]["message"]


def test_a_reply_with_an_adapter_is_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", TINY, "--data", folder(tmp_path / "data", 2, 1), "--iters", "3", "--lr", "0.02", "--num-layers", "2"]
    run(capsys, *words, "--max-seq-length", "48", "-o", tmp_path / "a")
    texts = []
    for adapter in ([], ["--adapter", str(tmp_path / "a")]):
        asked = ["generate", str(TINY), "--prompt", "What do you see?", "--temp", "0", "--max-tokens", "8", *adapter]
        assert main([*asked, "--json", "--events", "quiet"]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] != texts[1]
    assert main(["generate", str(TINY), "--prompt", "x", "--adapter", str(tmp_path), "--events", "quiet"]) == 2
    assert "adapter_config.json" in capsys.readouterr().err


def test_what_carries_loss_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", "check", str(TINY), "--data", str(folder(tmp_path / "data", 2, 1))]) == 0
    out = capsys.readouterr().out
    assert "train.jsonl:1, what carries loss in [[ ]]:" in out and "</think>\n\n[[It is a red stone.<|im_end|>]]" in out


def test_the_longest_sequence_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optiq.lora.ceiling.SHORTEST", 16)
    monkeypatch.setattr("optiq.lora.ceiling.LONGEST", 64)
    words = ["train", TINY, "--rank", "2", "--num-layers", "2"]
    code, failed = run(capsys, *words)
    assert code == 2 and "needs --data PATH" in failed["error"]["message"]
    _, found = run(capsys, *words, "--find-max-length")
    assert [step[0] for step in found["steps"]] == [16, 32, 64] and found["length"] >= 64
    assert found["steps"][0][1] < found["steps"][-1][1] < found["available_bytes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target-modules", ","], "--target-modules names none, expected ends of layers' paths, or all"),
        (["--seed", "-1"], "--seed -1: expected a whole number from 0 to 9223372036854775807"),
        (["--seed", str(1 << 63)], "--seed 9223372036854775808: expected a whole number from 0 to"),
        (["--clip", "nan"], "--clip nan: expected at least 0"),
        (["--clip", "-1"], "--clip -1.0: expected at least 0"),
        (["--weight-decay", "inf"], "--weight-decay inf: expected at least 0"),
        (["--warmup-iters", "-1"], "--warmup-iters -1: expected at least 0"),
        (["--early-stopping-patience", "-1"], "--early-stopping-patience -1: expected at least 0"),
        (["--early-stopping-min-delta", "nan"], "--early-stopping-min-delta nan: expected at least 0"),
    ],
)
def test_what_no_run_can_be_asked_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", "train", "/no/model", "--data", "/no/data", *words]) == 2
    assert capsys.readouterr().err.startswith(f"optiq: error: {message}")


def test_a_negative_number_of_samples_to_show_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", "check", str(TINY), "--data", "/no/data", "--show", "-1"]) == 2
    assert capsys.readouterr().err == "optiq: error: --show -1: expected at least 0\n"


@pytest.mark.parametrize(
    ("output", "overwrite", "message"),
    [
        ("data", False, "holds the data train.jsonl, where the log would be written"),
        ("data", True, "holds the data train.jsonl, where the log would be written"),
        (".", True, "is or holds the model"),
        ("model", True, "is or holds the model"),
        ("mine", True, "holds other files than an adapter's, so --overwrite does not replace it"),
        ("mine/thesis.txt", True, "is a file, expected a directory"),
    ],
)
def test_nobodys_files_are_replaced_by_an_adapter(
    tmp_path: Path, output: str, overwrite: bool, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder(tmp_path / "data", 3, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = ["train", tmp_path / "model", "--data", data, "-o", tmp_path / output, *(["--overwrite"] if overwrite else [])]
    code, failed = run(capsys, *words)
    assert code == 2 and message in failed["error"]["message"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_merged_adapter_is_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("precious")
    code, failed = run(capsys, "merge", tmp_path, "--model", "/no/model", "-o", tmp_path / "file")
    assert code == 2 and "is a file, expected a directory; choose another -o" in failed["error"]["message"]
