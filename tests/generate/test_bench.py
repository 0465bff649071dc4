"""Rows, spreads, files and comparisons of `optiq bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import random_models
from optiq.errors import FormatError, InputError
from optiq.generate.bench import KIND, compare, machine, measure, read_result, weight_bytes
from optiq.generate.options import Plan
from optiq.models.load import load_modules


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_modules(random_models.write(tmp_path_factory.mktemp("bench"), "qwen3_5-tied"))[0]


def test_every_pair_of_lengths_is_measured(model: Any) -> None:
    rows = measure(model, 128, Plan((4, 9), (1, 3), repeats=3))
    assert [(row["prompt_tokens"], row["generate_tokens"]) for row in rows] == [(4, 1), (4, 3), (9, 1), (9, 3)]
    for row in rows:
        assert row["cache_bytes"] > 0 and row["peak_memory_bytes"] > row["cache_bytes"]
        for name in ("prompt_tokens_per_s", "prompt_s"):
            spread = row[name]
            assert len(spread["samples"]) == 3 and spread["low"] <= spread["median"] <= spread["high"]
        assert (row["decode_tokens_per_s"] is None) == (row["generate_tokens"] == 1)
    row = rows[1]
    for seconds, rate, count in (("prompt_s", "prompt_tokens_per_s", 4), ("decode_s", "decode_tokens_per_s", 2)):
        assert [count / s for s in row[seconds]["samples"]] == pytest.approx(row[rate]["samples"])


def test_weight_bytes(model: Any, tmp_path: Path) -> None:
    file = random_models.write(tmp_path, "qwen3_5-tied") / "model.safetensors"
    # The rest of the file is its header.
    assert 0 < file.stat().st_size - weight_bytes(model) < 20_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_lengths": (0, 5)}, "--prompt-lengths is 0,5, expected whole numbers of at least 1"),
        ({"generate_lengths": ()}, "--generate-lengths is empty, expected whole numbers of at least 1"),
        ({"repeats": 0}, "--repeats is 0, expected a whole number of at least 1"),
        ({"prefill_chunk": -1}, "--prefill-chunk is -1, expected a whole number of at least 1"),
    ],
)
def test_plans_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Plan(**changes)
    assert str(error.value) == message


def _result(*rows: tuple[int, int, float, float | None], **model: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": KIND,
        "model": {"name": "m", "weight_bytes": 10, **model},
        "machine": {"cpu": "c", "device": "cpu", "threads": 1},
        "rows": [
            {
                "prompt_tokens": prompt,
                "generate_tokens": generate,
                "prompt_tokens_per_s": {"median": read},
                "decode_tokens_per_s": None if write is None else {"median": write},
            }
            for prompt, generate, read, write in rows
        ],
    }


def test_comparison_row_by_row() -> None:
    now = _result((8, 4, 30.0, 10.0), (8, 1, 30.0, None), (9, 4, 5.0, 5.0))
    earlier = _result((8, 1, 60.0, None), (8, 4, 10.0, 20.0), weight_bytes=11)
    found = compare(now, earlier, "before.json")
    assert found["name"] == "before.json" and found["differs"] == ["model weight_bytes"]
    ratios = [(row["prompt_tokens_per_s"], row["decode_tokens_per_s"]) for row in found["rows"]]
    assert ratios == [(3.0, 0.5), (0.5, None), (None, None)]
    assert compare(now, now, "self")["differs"] == []


def test_files_that_are_no_results(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(InputError, match="no bench result at"):
        read_result(str(path))
    path.write_text(json.dumps({**_result(), "kind": "other"}))
    with pytest.raises(FormatError, match=r"is no result of `optiq bench` \(kind 'other', expected 'optiq-bench'\)"):
        read_result(str(path))
    path.write_text(json.dumps({**_result(), "schema": 7}))
    with pytest.raises(FormatError, match="has schema 7, expected 1"):
        read_result(str(path))
    path.write_text(json.dumps(_result()))
    assert read_result(str(path)) == _result()


def test_the_machine_is_named() -> None:
    found = machine()
    assert found["cpu"] and found["device"] in ("cpu", "gpu") and found["threads"] >= 1
    assert json.loads(json.dumps(found)) == found
