"""Training learns, stops, refuses, and goes on after a kill to the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from lora_training import folder, preferences, settings, write
from optiq.errors import InputError, ModelError
from optiq.lora import train
from optiq.lora.train import LOG


def log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / LOG).read_text().splitlines()]


def tensors(path: Path) -> dict[str, mx.array]:
    return mx.load(str(path / "adapter_model.safetensors"))  # type: ignore[return-value]


def same(one: Path, other: Path) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(mx.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("data"))


def test_the_loss_falls_and_the_best_adapter_is_kept(data: Path, tmp_path: Path) -> None:
    done = train.run(settings(data, tmp_path / "a", iters=12, accumulation=2, batch_size=2, eval_every=3))
    losses = [line["valid"] for line in log(done.path) if "valid" in line]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.1
    assert done.valid == min(losses) and done.parameters == sum(array.size for array in tensors(done.path).values())
    assert not (done.path / "state").exists()
    reported = [line for line in log(done.path) if "loss" in line]
    assert [line["step"] for line in reported] == list(range(1, 13)) and all(line["tokens_per_s"] > 0 for line in reported)


def test_a_run_that_stops_in_between_goes_on_to_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.Trainer, "keep", lambda self: None)  # as a kill has it
    asked = {"dropout": 0.1, "iters": 6, "save_every": 2}
    whole = train.run(settings(data, tmp_path / "whole", **asked)).path
    plain, count = train.Trainer._step, []

    def step(self: Any, now: Any) -> Any:
        count.append(now.step)
        if len(count) == 4:
            raise KeyboardInterrupt
        return plain(self, now)

    monkeypatch.setattr(train.Trainer, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        train.run(settings(data, tmp_path / "cut", **asked))
    done = train.run(settings(data, tmp_path / "cut", **asked))
    assert count == [0, 1, 2, 3, 2, 3, 4, 5] and done.resumed == 2
    assert same(whole, done.path)
    keys = ("step", "loss", "valid")
    assert [[line.get(key) for key in keys] for line in log(whole)] == [
        [line.get(key) for key in keys] for line in log(done.path)
    ]


def test_a_run_that_is_asked_to_end_keeps_its_adapter_and_goes_on_to_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"iters": 5, "eval_every": 5, "save_every": 100}
    whole = train.run(settings(data, tmp_path / "whole", **asked)).path
    plain = train.Trainer._loss
    calls: list[int] = []

    def loss(self: Any, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(self, *rest)

    monkeypatch.setattr(train.Trainer, "_loss", loss)
    with pytest.raises(KeyboardInterrupt):
        train.run(settings(data, tmp_path / "cut", **asked))
    kept = tensors(tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["optiq"]["steps"] == 3
    assert any(mx.any(value != 0).item() for name, value in kept.items() if "lora_B" in name)
    done = train.run(settings(data, tmp_path / "cut", **asked))
    assert done.resumed == 3 and done.steps == 5 and same(whole, done.path)


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "optiq.cli",
        "lora",
        "train",
        settings(data, tmp_path).model,
        "--data",
        str(data),
        "--rank",
        "2",
    ]
    words += ["--iters", "12", "--steps-per-save", "1", "--max-seq-length", "48", "--steps-per-eval", "4", "-o"]
    subprocess.run([*words, str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen([*words, str(tmp_path / "cut")], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    stop = random.randrange(1, 11)
    state = tmp_path / "cut" / "state" / "state.json"
    while process.poll() is None:
        if state.is_file() and json.loads(state.read_text())["step"] >= stop:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*words, str(tmp_path / "cut")], check=True, capture_output=True)
    assert same(tmp_path / "whole", tmp_path / "cut"), f"killed after step {stop}"


def test_an_interrupted_run_with_other_settings_is_not_mixed_in(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.Trainer, "_finish", lambda self, *rest: None)
    train.run(settings(data, tmp_path / "a"))
    with pytest.raises(InputError, match="interrupted run with other settings or data"):
        train.run(settings(data, tmp_path / "a", rank=3))


def test_an_adapter_that_is_there_is_not_overwritten_unasked(data: Path, tmp_path: Path) -> None:
    train.run(settings(data, tmp_path / "a", iters=1))
    with pytest.raises(InputError, match="holds an adapter already"):
        train.run(settings(data, tmp_path / "a", iters=1))
    assert train.run(settings(data, tmp_path / "a", iters=2, overwrite=True)).steps == 2


def test_patience_ends_a_run_and_keeps_the_best(data: Path, tmp_path: Path) -> None:
    done = train.run(settings(data, tmp_path / "a", iters=9, eval_every=1, patience=2, min_delta=100.0))
    assert done.stopped and done.steps == 3 and done.best_step == 1


def test_a_loss_that_is_not_finite_names_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "data.jsonl", [{"text": "The sea is large."}, {"text": "The land is wide."}])
    plain = train.Trainer._loss
    monkeypatch.setattr(train.Trainer, "_loss", lambda self, *rest: plain(self, *rest) * mx.array(float("nan")))
    with pytest.raises(ModelError, match=r"step 1: the loss or its gradient is nan, from data.jsonl:\d"):
        train.run(settings(file, tmp_path / "a"))


def test_preferences_raise_the_margin_on_pairs_that_were_not_seen(tmp_path: Path) -> None:
    data = preferences(tmp_path / "data")
    done = train.run(settings(data, tmp_path / "a", method="dpo", iters=8, eval_every=4, lr=1e-3))
    margins = [line["margin"] for line in log(done.path) if "margin" in line]
    assert 0 < margins[0] < margins[1]
    assert done.valid is not None and done.valid < 0.6931  # log 2 is where there is no preference


@pytest.mark.parametrize("changes", [{"dpo_loss": "ipo"}, {"label_smoothing": 0.1}, {"packing": False}])
def test_other_objectives_of_preferences(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = preferences(tmp_path / "data", 3, 1)
    done = train.run(settings(data, tmp_path / "a", method="dpo", iters=4, eval_every=2, lr=1e-3, **changes))
    first, last = (line["margin"] for line in log(done.path) if "margin" in line)
    assert 0 < first < last


def test_records_of_another_method_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kind chat, which are for --method sft, not dpo"):
        train.run(settings(data, tmp_path / "a", method="dpo"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 1.0}, "--dropout 1.0: expected at least 0 and below 1"),
        ({"batch_size": 0}, "--batch-size 0: expected at least 1"),
        ({"lr": -1.0}, "--lr -1.0: expected a number above 0"),
        ({"max_length": 1}, "--max-seq-length 1: expected at least 2"),
        ({"schedule": "linear"}, "--schedule 'linear': expected one of cosine, constant"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(Path("data"), Path("out"), **changes)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    asked = settings(Path("data"), Path("out"), iters=100, warmup=10, lr=1.0).with_steps(1)
    rates = [asked.lr_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and rates[99] == pytest.approx(0.1, abs=0.01) and rates[55] == pytest.approx(0.55)
