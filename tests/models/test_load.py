"""Directories that lie: the loader says one line about each, and never runs what a directory brings along."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import random_models
from optiq.errors import FormatError, ModelError
from optiq.models import shards
from optiq.models.chat import prompt_text
from optiq.models.families import family_of
from optiq.models.load import load_modules


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model without a tokenizer."""
    return random_models.write(tmp_path / "model", "qwen3_5-tied")


def _change(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((model / "config.json").read_text())
    change(config)
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "text",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": None},
        {"hidden_size": 10**15},
        {"hidden_size": "64"},
        {"hidden_size": -4},
        {"rope_parameters": "none"},
        {"num_hidden_layers": 2},
    ],
    ids=str,
)
def test_a_config_that_lies_is_one_line(model: Path, text: dict[str, Any]) -> None:
    _change(model, lambda config: config["text_config"].update(text))
    with pytest.raises(ModelError, match="mlx-lm cannot load it .*compare config.json") as caught:
        load_modules(model)
    assert len(str(caught.value)) < 500  # not the name of every tensor


def test_a_text_config_of_another_kind_is_one_line(model: Path) -> None:
    _change(model, lambda config: config.update(text_config=[]))
    with pytest.raises(ModelError, match="mlx-lm cannot load it"):
        load_modules(model)


def test_weights_under_a_name_that_the_loader_does_not_know_are_one_line(model: Path) -> None:
    (model / "model.safetensors").rename(model / "weights.safetensors")
    with pytest.raises(ModelError, match="No safetensors found"):
        load_modules(model)


def test_code_in_the_directory_is_not_run(model: Path) -> None:
    (model / "own.py").write_text("raise SystemExit('it was run')")
    _change(model, lambda config: config.update(model_file="own.py"))
    with pytest.raises(ModelError, match=r"model_file 'own\.py'\), which is never run"):
        load_modules(model)


def test_a_width_that_is_no_number_belongs_to_no_family() -> None:
    assert family_of({"model_type": "qwen3", "hidden_size": 1024}) == "qwen3"
    assert family_of({"model_type": "qwen3", "hidden_size": "1024"}) is None


def test_a_pipe_is_no_model(model: Path) -> None:
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    with pytest.raises(FormatError, match="is no regular file"):
        shards.model_bytes(model)


def test_a_template_whose_program_fails_is_one_line(tmp_path: Path) -> None:
    from optiq.models.load import load_tokenizer

    tiny = Path(__file__).parents[2] / "examples" / "tiny-qwen3.5"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path / name)
    (tmp_path / "chat_template.jinja").write_text("{% for i in range(99999999) %}x{% endfor %}")
    with pytest.raises(ModelError, match="refuses this conversation: Range too big"):
        prompt_text(load_tokenizer(tmp_path), [{"role": "user", "content": "hi"}])
