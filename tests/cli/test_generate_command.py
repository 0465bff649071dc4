"""`optiq generate` as a user sees it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import random_models
from optiq.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> object:
    def give(data: bytes, terminal: bool = False) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: terminal))

    return give


def test_one_reply(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(tiny_model), "--prompt", "The sea", "--max-tokens", "8", "--seed", "5", "--no-thinking"]
    assert main(words) == 0
    first = capsys.readouterr()
    assert first.out.strip() and first.out.endswith("\n") and "�" not in first.out
    assert "presence penalty 2 (preset qwen3.5-small, not thinking); seed 5" in first.err
    assert "prompt 15 tokens, " in first.err and "reply 8 tokens, " in first.err and "peak memory" in first.err

    assert main([*words, "--json", "--events", "quiet"]) == 0
    second = capsys.readouterr()
    data = json.loads(second.out)
    assert data["text"] == first.out.rstrip("\n") and data["thinking"] is False and second.err == ""
    assert (data["prompt_tokens"], data["tokens"], data["finish"]) == (15, 8, "length")
    assert data["sampling"]["seed"] == 5 and data["sources"]["top_k"] == "preset"


def test_a_use_decides_before_the_mode(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "The sea", "--max-tokens", "1", "--seed", "5", "--preset", "chat"]
    for mode in ("--thinking", "--raw"):
        assert main(["generate", str(tiny_model), *words, mode]) == 0
        assert "sampling: temperature 0.7, top p 0.9 (preset qwen3.5-small, chat)" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    (tmp_path / "model.safetensors").write_bytes(b"")  # the weights are not even looked at
    assert main(["generate", str(tmp_path), *words]) == 2
    assert "error: --preset is chat, and this model is of no known family" in capsys.readouterr().err


def test_raw_text_from_a_pipe(tiny_model: Path, capsys: pytest.CaptureFixture[str], stdin) -> None:  # type: ignore[no-untyped-def]
    stdin("Once upon a time — ".encode())
    assert main(["generate", str(tiny_model), "--raw", "--temp", "0", "--max-tokens", "6"]) == 0
    captured = capsys.readouterr()
    assert "sampling: temperature 0 (flag)\n" in captured.err and "<think>" not in captured.out


def test_a_conversation_over_a_pipe(tiny_model: Path, capsys: pytest.CaptureFixture[str], stdin) -> None:  # type: ignore[no-untyped-def]
    stdin(b"What is the sea?\n\nAnd the sky?")
    assert main(["generate", str(tiny_model), "--chat", "--json", "--max-tokens", "5", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    first, second = map(json.loads, captured.out.splitlines())
    assert first["cached_tokens"] == 0 and first["thinking"] and first["text"].startswith("<think>\n")
    assert 0 < second["cached_tokens"] < second["prompt_tokens"]
    assert captured.err.count("sampling: ") == 1


def test_long_prompts(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_model, short)
    config = json.loads((short / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 16
    (short / "config.json").write_text(json.dumps(config))
    words = ["generate", str(short), "--raw", "--prompt", "the sea " * 12, "--max-tokens", "1", "--prefill-chunk", "10"]
    assert main(words) == 0
    lines = capsys.readouterr().err.splitlines()
    (warning,) = [line for line in lines if "warning" in line]
    assert warning.startswith("optiq: warning: the prompt has ") and "this model was made for 16" in warning
    assert any(line.startswith("read the prompt: ") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", " "], "the prompt is empty (1 characters in --prompt), expected a text"),
        (["--prompt", "x", "--temp", "-1"], "--temp is -1.0, expected a number from 0 to 10"),
        (["--prompt", "x", "--max-tokens", "0"], "--max-tokens is 0, expected a whole number of at least 1"),
        (["--prompt", "x", "--stop", ""], "--stop is empty, expected a text"),
        (["--raw", "--chat"], "--raw writes no chat template, and --chat needs one; leave one of the two out"),
        (["--raw", "--prompt", "x", "--no-thinking"], "--raw writes no chat template, and --thinking needs one"),
        (["--prompt", "caf\udce9"], "the argument 'caf\\xe9' is not UTF-8 text (byte 0xe9), expected UTF-8"),
        (["--prompt", "x", "--stop", "\udcff"], "the argument '\\xff' is not UTF-8 text (byte 0xff), expected UTF-8"),
    ],
)
def test_bad_arguments_are_one_line_before_anything_is_loaded(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "/no/model", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"optiq: error: {message}")


@pytest.mark.parametrize(
    ("data", "terminal", "message"),
    [
        (b"", True, "no prompt; give --prompt TEXT, --chat, or a text on stdin"),
        (b"", False, "the prompt is empty (0 characters on stdin), expected a text"),
        (b"caf\xe9", False, "stdin is not UTF-8 text (byte 0xe9), expected UTF-8"),
    ],
)
def test_stdin_without_a_text(data: bytes, terminal: bool, message: str, capsys: pytest.CaptureFixture[str], stdin) -> None:  # type: ignore[no-untyped-def]
    stdin(data, terminal)
    assert main(["generate", "/no/model"]) == 2
    assert capsys.readouterr().err == f"optiq: error: {message}\n"


def test_interrupts_and_readers_that_go_away(tiny_model: Path) -> None:
    """A conversation: Ctrl-C ends the first reply, the second is given, then nobody reads any more."""
    command = [sys.executable, "-m", "optiq.cli", "generate", str(tiny_model), "--chat", "--max-tokens", "4000"]
    command += ["--temp", "0", "--repetition-penalty", "0.5"]  # repeats itself without end
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as process:  # type: ignore[call-overload]
        process.stdin.write(b"Hello\nAgain\n")
        process.stdin.close()
        assert process.stdout.readline() == b"<think>\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.readline()
        while rest != b"<think>\n":
            assert rest, "the second reply never began"
            rest = process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(timeout=300) == 141
    assert errors.count("interrupted;") == 1 and "Traceback" not in errors and "error" not in errors


def test_guesses_change_no_text(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(tiny_model), "--raw", "--prompt", "The history of the sea is", "--max-tokens", "40", "--temp", "0"]
    assert main([*words, "--json", "--events", "quiet"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["speculation"] is None
    assert main([*words, "--mtp", "--json"]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    told = data["speculation"]
    assert data["text"] == plain["text"] and 0 < told["accepted"] <= told["drafted"] and told["forwards"] <= 40
    assert f"MTP: {told['accepted']} of {told['drafted']} guesses accepted (" in captured.err
    assert " passes of the model per token" in captured.err

    bare = random_models.write(tmp_path / "bare", "qwen3_5-tied")
    shutil.copy(tiny_model / "tokenizer.json", bare)
    shutil.copy(tiny_model / "tokenizer_config.json", bare)
    assert main(["generate", str(bare), "--raw", "--prompt", "x", "--mtp"]) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and "no MTP head (mtp.safetensors, or tensors mtp.*)" in error
