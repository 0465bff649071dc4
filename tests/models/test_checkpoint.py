"""Opening a checkpoint: its tensors, quantized ones as dense values, and one clear line for each thing that can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.errors import FormatError, ModelError, OptiqError
from optiq.models.checkpoint import Checkpoint

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_models.write(tmp_path / "model", "llama")


def change(model: Path, **weights: mx.array | None) -> None:
    """Rewrite the weights with some replaced, added, or (None) removed; dots are written as double underscores."""
    stored = dict(mx.load(str(model / "model.safetensors")))
    mx.eval(stored)
    for name, value in weights.items():
        name = name.replace("__", ".")
        if value is None:
            del stored[name]
        else:
            stored[name] = value
    mx.save_safetensors(str(model / "model.safetensors"), stored)


def shard(model: Path) -> list[Path]:
    """Split the weights into two indexed shards."""
    stored = dict(mx.load(str(model / "model.safetensors")))
    mx.eval(stored)
    (model / "model.safetensors").unlink()
    names = sorted(stored)
    weight_map, files = {}, []
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = model / f"model-0000{i}-of-00002.safetensors"
        mx.save_safetensors(str(file), {name: stored[name] for name in part})
        weight_map |= dict.fromkeys(part, file.name)
        files.append(file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


def refusal(model: Path) -> str:
    """The one line with which a checkpoint is refused by everything that is done before long work."""
    with pytest.raises(OptiqError) as caught:
        checkpoint = Checkpoint.open(model)
        checkpoint.check()
        checkpoint.check_finite()
    assert isinstance(caught.value, (ModelError, FormatError))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_checkpoint_passes(model: Path) -> None:
    checkpoint = Checkpoint.open(model)
    checkpoint.check()
    checkpoint.check_finite()
    assert checkpoint.quantization is None and checkpoint.dtype == mx.bfloat16 and checkpoint.name == "model"


def test_shards_are_read_as_one(model: Path) -> None:
    expected = {name: np.array(value) for name, value in Checkpoint.open(model).weights().items()}
    shard(model)
    checkpoint = Checkpoint.open(model)
    checkpoint.check()
    found = {name: np.array(value) for name, value in checkpoint.weights().items()}
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


def test_a_shard_that_the_index_names_but_that_is_not_there(model: Path) -> None:
    shard(model)[1].unlink()
    assert "1 of 2 files named in model.safetensors.index.json are missing: model-00002-of-00002.safetensors" in refusal(model)


def test_a_truncated_shard(model: Path) -> None:
    file = shard(model)[0]
    file.write_bytes(file.read_bytes()[:-100])
    message = refusal(model)
    assert str(file) in message and "is truncated" in message


def test_an_unknown_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "hal9000"}))
    assert "'hal9000' is unknown" in refusal(model)


def test_a_config_that_describes_no_model(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    del config["hidden_size"]
    (model / "config.json").write_text(json.dumps(config))
    message = refusal(model)
    assert "mlx-lm cannot build 'llama'" in message and "hidden_size" in message


def test_a_missing_tensor(model: Path) -> None:
    change(model, **{NAME.replace(".", "__"): None})
    assert f"the checkpoint lacks {NAME};" in refusal(model)


def test_an_unexpected_tensor(model: Path) -> None:
    change(model, model__layers__0__extra=mx.zeros((2,)))
    assert "has unexpected model.layers.0.extra;" in refusal(model)


def test_a_tensor_of_another_shape(model: Path) -> None:
    change(model, **{NAME.replace(".", "__"): mx.zeros((64, 128), mx.bfloat16)})
    assert f"has other shapes than its config for {NAME};" in refusal(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite(model: Path, value: float) -> None:
    weight = mx.load(str(model / "model.safetensors"))[NAME]
    weight[3, 5] = value
    change(model, **{NAME.replace(".", "__"): weight})
    assert f"{NAME} holds 1 values that are NaN or infinite" in refusal(model)


def test_many_faults_are_counted(model: Path) -> None:
    names = [f"model.layers.{i}.mlp.{leaf}.weight" for i in range(3) for leaf in ("up_proj", "down_proj")]
    change(model, **{name.replace(".", "__"): None for name in names})
    assert refusal(model).count("mlp") == 3 and "and 3 more" in refusal(model)


def test_a_quantized_directory_is_read_as_its_dense_values(model: Path) -> None:
    """With widths per path, as mixed models have them, and with a path that the config does not name."""
    stored = dict(mx.load(str(model / "model.safetensors")))
    quantized, expected = {}, {}
    table: dict[str, object] = {"group_size": 64, "bits": 4, "mode": "affine"}
    for name, value in stored.items():
        path = name.removesuffix(".weight")
        if value.ndim != 2:
            quantized[name] = value
            continue
        bits, group_size = (8, 64) if "down_proj" in name else (3, 64) if "q_proj" in name else (4, 64)
        words, scales, biases = mx.quantize(value, group_size, bits)
        quantized |= {name: words, f"{path}.scales": scales, f"{path}.biases": biases}
        expected[name] = mx.dequantize(words, scales.astype(mx.float32), biases.astype(mx.float32), group_size, bits)
        if "q_proj" in name:
            table[path] = {"group_size": group_size, "bits": bits}
    mx.eval(quantized)
    mx.save_safetensors(str(model / "model.safetensors"), quantized)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization": table}))
    checkpoint = Checkpoint.open(model)
    assert checkpoint.quantization == table
    checkpoint.check()
    weights = checkpoint.weights()
    for name, value in expected.items():
        np.testing.assert_allclose(np.array(weights[name]), np.array(value), atol=1e-6, err_msg=name)


def test_zero_centred_norms_are_shifted_in_float32(tiny_model: Path) -> None:
    checkpoint = Checkpoint.open(tiny_model)
    name = next(name for name in checkpoint.headers if name.endswith("input_layernorm.weight"))
    mapped = next(n for n in checkpoint.weights() if n.endswith(name.split("layers.")[1]))
    stored, read = np.array(checkpoint.raw()[name].astype(mx.float32)), np.array(checkpoint.weights()[mapped])
    assert np.array_equal(read, stored) or np.array_equal(read, stored + np.float32(1.0))


def test_a_transform_is_applied_by_name_and_taken_off_again(model: Path) -> None:
    from dataclasses import replace

    source = Checkpoint.open(model)
    changed = replace(source, transform=lambda name, value: value * 2 if name == NAME else value)
    assert mx.array_equal(changed.weights()[NAME], 2 * source.weights()[NAME])
    assert mx.array_equal(changed.original().weights()[NAME], source.weights()[NAME])


def test_reading_weights_leaves_no_lazy_chain_of_random_keys(model: Path) -> None:
    import io

    mx.random.normal((1,))
    for _ in range(3):
        Checkpoint.open(model).weights()
    graph = io.StringIO()
    mx.export_to_dot(graph, mx.random.state[0])
    assert "->" not in graph.getvalue()  # one node per initial weight would stay in memory until a key is evaluated
