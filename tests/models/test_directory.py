"""Written models: exact sizes, shards, the config's table, side files, the multi-token head."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.kernels.affine import Coded
from optiq.models import directory, mtp, save, shards
from optiq.models.checkpoint import Checkpoint
from optiq.models.topology import topology
from optiq.plan.types import Choice
from optiq.quantize.encoders.rtn import rtn

ARRAYS = {
    "a.weight": mx.arange(24, dtype=mx.uint32).reshape(4, 6),
    "a.scales": mx.random.normal((4, 2)).astype(mx.bfloat16),
    "half": mx.random.normal((3, 5)).astype(mx.float16),
    "deep": mx.random.normal((2, 3, 4)),
    "one": mx.array(2.5),
    "none": mx.zeros((0, 4)),
}


def test_files_are_read_by_mlx_and_by_our_reader(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save.write_safetensors(path, ARRAYS, {"format": "mlx", "encoder": "rtn"})
    found = mx.load(str(path))
    assert found.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert found[name].dtype == value.dtype and mx.array_equal(found[name], value), name
    header = shards.read_header(path)
    assert {name: entry.shape for name, entry in header.items()} == {name: tuple(v.shape) for name, v in ARRAYS.items()}
    assert shards.read_metadata(path) == {"format": "mlx", "encoder": "rtn"}


def test_the_size_is_known_before_the_first_tensor(tmp_path: Path) -> None:
    entries = [save.entry(name, value) for name, value in ARRAYS.items()]
    expected = len(save.header(entries, {"format": "mlx"})) + sum(e.bytes for e in entries)
    fetched: list[str] = []

    def fetch(name: str) -> mx.array:
        fetched.append(name)
        return ARRAYS[name]

    save.stream_safetensors(tmp_path / "x.safetensors", entries, fetch, {"format": "mlx"})
    assert (tmp_path / "x.safetensors").stat().st_size == expected and fetched == list(ARRAYS)


def test_rows_written_side_by_side_make_the_same_file(tmp_path: Path) -> None:
    arrays = {name: ARRAYS[name] for name in ("a.weight", "a.scales", "deep")}
    entries = [save.entry(name, value) for name, value in arrays.items()]
    with save.writing_rows(tmp_path / "rows.safetensors", entries, {"encoder": "rtn"}) as put:
        for start in range(4):
            for name, value in arrays.items():
                if start < len(value):
                    put(name, value[start : start + 1])
    save.write_safetensors(tmp_path / "whole.safetensors", arrays, {"encoder": "rtn"})
    assert (tmp_path / "rows.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_file_that_lacks_rows_is_not_there(tmp_path: Path) -> None:
    entry = save.entry("deep", ARRAYS["deep"])
    with (
        pytest.raises(AssertionError, match=r"x\.safetensors: the rows of deep"),
        save.writing_rows(tmp_path / "x.safetensors", [entry], {}) as put,
    ):
        put("deep", ARRAYS["deep"][:1])
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    def fetch(name: str) -> mx.array:
        if name == "deep":
            raise KeyError(name)
        return ARRAYS[name]

    with pytest.raises(KeyError):
        save.stream_safetensors(tmp_path / "x.safetensors", [save.entry(n, v) for n, v in ARRAYS.items()], fetch, {})
    assert list(tmp_path.iterdir()) == []


def test_shards_keep_the_order_and_the_limit() -> None:
    entries = [save.Entry(str(i), "BF16", (10, 10)) for i in range(7)]
    groups = save.shards(entries, 450)
    assert [name for name, _ in groups] == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    assert [e.name for _, group in groups for e in group] == [str(i) for i in range(7)]
    assert save.shards(entries) == [("model.safetensors", entries)]


@pytest.fixture(scope="module", params=["llama", "qwen3_5-moe", "deepseek_v3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(random_models.write(tmp_path_factory.mktemp(request.param) / "model", request.param))


def mixed(checkpoint: Checkpoint) -> dict[str, Choice]:
    """Every width in turn, and one tensor in sixteen bits."""
    choices = {}
    for i, tensor in enumerate(topology(checkpoint).tensors):
        bits = (2, 3, 4, 5, 6, 8, 16)[i % 7]
        choices[tensor.name] = Choice(tensor.name, bits, 0 if bits == 16 else 32, 0, 0.0)
    return choices


def stored(checkpoint: Checkpoint, choices: dict[str, Choice]) -> directory.Fetch:
    weights = checkpoint.weights()

    def fetch(name: str) -> mx.array:
        path, _, leaf = name.rpartition(".")
        choice, weight = choices[path], weights[f"{path}.weight"].astype(mx.bfloat16)
        if choice.bits == 16:
            return weight
        return dict(zip(("weight", "scales", "biases"), mx.quantize(weight, 32, choice.bits), strict=True))[leaf]

    return fetch


def test_layouts_are_exact_for_any_mix(checkpoint: Checkpoint, tmp_path: Path) -> None:
    layout, choices = directory.Layout(checkpoint, topology(checkpoint)), mixed(checkpoint)
    total = layout.write(tmp_path, choices, stored(checkpoint, choices))
    file = tmp_path / "model.safetensors"
    assert total == file.stat().st_size
    values = sum(entry.bytes for entry in layout.entries(choices))
    assert total == values + shards.header_bytes(file)
    quantized = values - layout.fixed_bytes
    assert quantized == sum(e.bytes for e in layout.entries(choices) if e.name not in layout.fixed)
    assert 0 <= layout.header_bytes() - shards.header_bytes(file) < 2048
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == values
    assert set(index["weight_map"]) == set(mx.load(str(file))) and set(index["weight_map"].values()) == {"model.safetensors"}


def test_what_was_written_is_what_the_choices_say(checkpoint: Checkpoint, tmp_path: Path) -> None:
    parts, choices = topology(checkpoint), mixed(checkpoint)
    directory.Layout(checkpoint, parts).write(tmp_path, choices, stored(checkpoint, choices))
    config = directory.config(checkpoint, parts, choices, {"extra": 1})
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name, choice in choices.items():
        expected = False if choice.bits == 16 else {"group_size": 32, "bits": choice.bits, "mode": "affine"}
        assert config["quantization"][name] == expected
    assert config["extra"] == 1 and config["model_type"] == checkpoint.config["model_type"]
    assert config["quantization"] == config["quantization_config"]
    again = Checkpoint.open(tmp_path)
    again.check()
    dense, source = again.weights(), checkpoint.weights()
    for name, value in dense.items():
        choice = choices.get(name.removesuffix(".weight"))
        bits = 16 if choice is None else choice.bits
        error = float(mx.abs(value - source[name]).max()) / max(float(mx.abs(source[name]).max()), 1e-30)
        assert error < {16: 0.005, 8: 0.02, 6: 0.06, 5: 0.1, 4: 0.2, 3: 0.4, 2: 0.8}[bits], name


def test_the_default_of_the_config_is_the_most_common_pair(checkpoint: Checkpoint) -> None:
    parts = topology(checkpoint)
    choices = {t.name: Choice(t.name, 8 if i == 0 else 4, 64, 0, 0.0) for i, t in enumerate(parts.tensors)}
    found = directory.config(checkpoint, parts, choices, {})["quantization"]
    assert (found["bits"], found["group_size"], found["mode"]) == (4, 64, "affine")


def test_side_files_are_copied_and_the_rest_is_not(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    wanted = ["tokenizer.json", "chat_template.jinja", "merges.txt", "tokenizer.model", "LICENSE", "generation_config.json"]
    for name in [*wanted, "config.json", "model.safetensors.index.json", "README.md", "model.safetensors", "run.py"]:
        (source / name).write_text(name)
    assert sorted(directory.copy_side_files(source, out)) == sorted(wanted)
    assert sorted(path.name for path in out.iterdir()) == sorted(wanted)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ('---\nlanguage: en\nlicense: "mit"\n---\n', "mit"),
        ("---\nlanguage: en\n---\nlicense: mit", None),
        ("# Model\nlicense: mit", None),
        ("", None),
        (None, None),
    ],
)
def test_the_licence_is_read_from_the_cards_head(tmp_path: Path, card: str | None, expected: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert directory.licence(tmp_path) == expected


def plain(weight: mx.array, bits: int, group_size: int, dtype: mx.Dtype) -> Coded:
    return rtn(weight, bits, group_size, dtype)


def test_the_multi_token_head_is_a_side_file(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_model)
    names = mtp.names(checkpoint)
    assert names and all(name.startswith("mtp.") for name in names)
    assert not any(name.startswith("mtp.") for name in checkpoint.weights())
    extra = mtp.write(checkpoint, tmp_path, plain)
    found, raw = mx.load(str(tmp_path / "mtp.safetensors")), checkpoint.raw()
    assert extra["mtp_file"] == "mtp.safetensors" and extra["mtp_tensor_count"] == len(found)
    assert extra["mtp_num_hidden_layers"] == 1 and extra["mlx_lm_extra_tensors"] == {"mtp_file": "mtp.safetensors"}
    assert extra["mtplx_mtp_quantization"]["bits"] == 4 and extra["mtplx_mtp_quantization"]["group_size"] == 64
    assert found["mtp.fc.weight"].dtype == mx.bfloat16 and mx.array_equal(found["mtp.fc.weight"], raw["mtp.fc.weight"])
    coded = [name for name in names if f"{name.removesuffix('.weight')}.scales" in found]
    assert len(found) == len(names) + 2 * len(coded)
    for name in names:
        path = name.removesuffix(".weight")
        if name not in coded:
            assert raw[name].ndim == 1 or name == "mtp.fc.weight"
            continue
        dense = mx.dequantize(found[name], found[f"{path}.scales"], found[f"{path}.biases"], 64, 4).astype(mx.float32)
        assert dense.shape == raw[name].shape
        error = np.abs(np.array(dense) - np.array(raw[name].astype(mx.float32)))
        assert error.max() < 0.25 * float(mx.abs(raw[name]).max())


def test_a_model_without_a_multi_token_head_has_no_side_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert mtp.write(checkpoint, tmp_path, plain) == {} and list(tmp_path.iterdir()) == []
