"""What users do to a conversion: places that must not be destroyed, two runs at once, broken models, budgets out of reach."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import quick
import random_models
from optiq.errors import InputError, ModelError, OptiqError, ResourceError
from optiq.measure.text import read_samples
from optiq.plan.budget import Budget
from optiq.plan.options import Keep

FAST: dict[str, Any] = {"sensitivity": "static", "encoder": "rtn", "verify": False}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama of one block."""
    return random_models.write(tmp_path / "in" / "llama", "llama", num_hidden_layers=1)


def files_in(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("where", ["llama", ".", "link"])
def test_the_model_itself_is_never_overwritten(model: Path, where: str) -> None:
    (model.parent / "link").symlink_to(model)
    for name in ("config.json", "model.safetensors"):  # so that the parent looks like a model, too
        (model.parent / name).write_bytes((model / name).read_bytes())
    before = files_in(model.parent)
    with pytest.raises(InputError, match=r"is or holds the model|is a link"):
        quick.converted(model, model.parent / where, overwrite=True, **FAST)
    assert files_in(model.parent) == before


def test_only_model_directories_are_overwritten(model: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    (tmp_path / "file").write_text("mine")
    for name in ("home", "file"):
        with pytest.raises(InputError, match="is not a model directory"):
            quick.converted(model, tmp_path / name, overwrite=True, **FAST)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years" and (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        quick.converted(model, tmp_path / "empty", overwrite=True, **FAST)
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_no_resume_removes_nothing_but_stages(model: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "thesis").mkdir(parents=True)
    (work / "sensitivity-0123456789abcdef").mkdir()
    quick.converted(model, tmp_path / "out", work=work, resume=False, **FAST)
    assert (work / "thesis").is_dir() and not (work / "sensitivity-0123456789abcdef").exists()


@pytest.mark.parametrize("work", ["in/llama", "in", "out", "out/work", "file/work"])
def test_work_directories_in_the_way_are_refused(model: Path, tmp_path: Path, work: str) -> None:
    (tmp_path / "file").write_text("mine")
    before = files_in(tmp_path)
    with pytest.raises(InputError, match="--work"):
        quick.converted(model, tmp_path / "out", work=tmp_path / work, resume=False, **FAST)
    assert files_in(tmp_path) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250])
def test_names_that_are_too_long_are_told(model: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"[Nn]ame too long"):
        quick.converted(model, tmp_path / name, **FAST)


def test_two_conversions_at_once_are_told_apart(model: Path, tmp_path: Path) -> None:
    work = tmp_path / ".out.work"
    work.mkdir()
    handle = os.open(work, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ResourceError, match=r"another conversion is at work in .*\.out\.work"):
        quick.converted(model, tmp_path / "out", **FAST)
    os.close(handle)
    quick.converted(model, tmp_path / "out", **FAST)
    assert not work.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_bpw": 1.0}, r"smallest possible is \d+ bytes \(4\.\d+ bits per weight\)"),
        ({"budget": Budget("gb", 1e-7)}, r"budget of 100 bytes for the model files.*smallest possible is \d{5} bytes"),
        ({"budget": Budget("like", 486)}, r"budget of 486 bytes for the model files.*smallest possible is \d{5} bytes"),
        ({"group_sizes": (128,)}, r"tensors have no choice but bf16\); raise the budget or allow fewer bits or other groups"),
        ({"keep": (Keep("nothing", 8),)}, "fits no tensor"),
        ({"calibration_mix": Path("/nowhere.jsonl")}, "calibration file /nowhere.jsonl cannot be read"),
    ],
)
def test_requests_out_of_reach_leave_nothing_behind(model: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick.converted(model, tmp_path / "out", **changes)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_the_smallest_possible_size_is_possible(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        quick.converted(model, tmp_path / "out", budget=Budget("like", 1000), **FAST)
    smallest = int(str(told.value).split("smallest possible is ")[1].split()[0])
    with pytest.raises(InputError, match="smallest possible"):
        quick.converted(model, tmp_path / "out", budget=Budget("like", smallest - 1), **FAST)
    done = quick.converted(model, tmp_path / "out", budget=Budget("like", smallest), **FAST)
    assert {choice["bits"] for choice in done.plan["choices"]} == {4}


def test_a_budget_beyond_the_best_plan_is_said(model: Path, tmp_path: Path) -> None:
    done = quick.converted(model, tmp_path / "out", target_bpw=100.0, **FAST)
    assert any("the best that these candidates offer takes" in note for note in done.plan["notes"])
    done = quick.converted(model, tmp_path / "small", target_bpw=5.0, **FAST)
    assert not any("the best that these candidates" in note for note in done.plan["notes"])


def test_a_pinned_width_is_offered_to_pinned_tensors_alone(model: Path, tmp_path: Path) -> None:
    done = quick.converted(model, tmp_path / "out", target_bpw=9.0, candidate_bits=(4,), keep=(Keep("embed_tokens", 8),), **FAST)
    widths = {choice["name"].rpartition(".")[2]: choice["bits"] for choice in done.plan["choices"]}
    assert widths.pop("embed_tokens") == 8 and set(widths.values()) == {4}


def test_a_mix_without_a_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mix.jsonl").write_text(json.dumps({"text": "a sentence"}))
    with pytest.raises(InputError, match="--calibration-mix needs a tokenizer"):
        quick.converted(model, tmp_path / "out", calibration_mix=tmp_path / "mix.jsonl")


@pytest.mark.parametrize(("line", "message"), [('{"text": "\\ud800"}', "surrogate"), ("[" * 100_000, "nested too deeply")])
def test_lines_that_no_tokenizer_takes_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mix.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InputError, match=rf"line 2: .*{message}"):
        read_samples(tmp_path / "mix.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "cache"}, "names a part of mlx-lm that is no architecture"),
        ({"model_type": "base"}, "names a part of mlx-lm that is no architecture"),
        ({"num_attention_heads": 0}, "mlx-lm cannot build 'llama'"),
        ({"max_position_embeddings": "many"}, "max_position_embeddings is 'many', expected a number"),
    ],
)
def test_broken_configs_are_told(model: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelError, match=message):
        quick.converted(model, tmp_path / "out")


def test_a_config_without_a_text_part_is_read_as_a_whole(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "text_config": None}))
    assert quick.converted(model, tmp_path / "out", encoder="rtn").plan["measured"]["mean"] > 0


def _without_quantization(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("quantization")}


@pytest.mark.parametrize("strip", [_without_quantization, lambda config: config])
def test_codes_are_recognised_whatever_the_config_says(model: Path, tmp_path: Path, strip: Callable[..., Any]) -> None:
    done = quick.converted(model, tmp_path / "out", **FAST)
    (done.path / "config.json").write_text(json.dumps(strip(json.loads((done.path / "config.json").read_text()))))
    with pytest.raises(OptiqError, match="is quantized already"):
        quick.converted(done.path, tmp_path / "twice", **FAST)


def test_weights_that_are_not_finite_leave_no_work_directory(model: Path, tmp_path: Path) -> None:
    weights = mx.load(str(model / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.norm.weight"] = weights["model.norm.weight"] * mx.inf
    mx.eval(weights)
    mx.save_safetensors(str(model / "model.safetensors"), weights)
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds 64 values that are NaN or infinite"):
        quick.converted(model, tmp_path / "out", **FAST)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_a_limit_on_file_sizes_is_told_and_the_next_run_works(model: Path, tmp_path: Path) -> None:
    import resource
    import signal

    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, old[1]))
    try:
        with pytest.raises(ResourceError, match="a limit on file sizes is reached while writing"):
            quick.converted(model, tmp_path / "out", **FAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "out").exists()
    quick.converted(model, tmp_path / "out", **FAST)
