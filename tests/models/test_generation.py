"""What a directory says about generating."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from optiq.errors import FormatError, ModelError
from optiq.models.generation import context_length, generation_config, stop_ids
from optiq.models.load import load


def _write(path: Path, config: dict[str, object], generation: dict[str, object] | None = None) -> Path:
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def test_all_end_tokens_count(tmp_path: Path) -> None:
    config = {"eos_token_id": 1, "text_config": {"eos_token_id": [2, 3]}}
    path = _write(tmp_path, config, {"eos_token_id": [4, 1]})
    assert stop_ids(path, SimpleNamespace(eos_token_ids={5})) == {1, 2, 3, 4, 5}
    assert stop_ids(_write(tmp_path, {"eos_token_id": None}, {})) == frozenset()


def test_the_embedded_model_ends_turns_and_documents(tiny_model: Path) -> None:
    assert stop_ids(tiny_model) == {4076, 4078}
    assert stop_ids(tiny_model, load(tiny_model)[1]) == {4076, 4078}


def test_context_length(tmp_path: Path, tiny_model: Path) -> None:
    assert context_length(tiny_model) == 4096
    assert context_length(_write(tmp_path, {})) is None


def test_generation_config(tmp_path: Path) -> None:
    assert generation_config(_write(tmp_path, {})) == {}
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(FormatError, match="the generation config .* is not valid JSON"):
        generation_config(tmp_path)


def test_a_directory_without_tokenizer_is_one_line(tmp_path: Path) -> None:
    import random_models

    with pytest.raises(ModelError, match="no tokenizer .* beside the weights"):
        load(random_models.write(tmp_path, "llama"))
