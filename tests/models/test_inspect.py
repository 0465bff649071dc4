"""Inspection of directories from headers and config alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import run

import pytest

from optiq.errors import FormatError, InputError
from optiq.models.inspect import by_kind, depth, inspect

mx = pytest.importorskip("mlx.core")


def quantized(name: str, shape: tuple[int, ...], bits: int, group_size: int) -> dict[str, mx.array]:
    codes, scales, biases = mx.quantize(mx.ones(shape, dtype=mx.bfloat16), group_size=group_size, bits=bits)
    return {f"{name}.weight": codes, f"{name}.scales": scales, f"{name}.biases": biases}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two layers, an embedding, a head, an expert bank and a norm at different widths."""
    arrays = {
        **quantized("model.embed_tokens", (96, 128), 8, 64),
        **quantized("model.layers.0.self_attn.q_proj", (128, 128), 3, 32),
        **quantized("model.layers.1.self_attn.q_proj", (128, 128), 4, 128),
        **quantized("model.layers.1.mlp.switch_mlp.up_proj", (4, 64, 128), 2, 64),
        **quantized("lm_head", (96, 128), 6, 64),
        "model.layers.0.mlp.up_proj.weight": mx.ones((64, 172), dtype=mx.bfloat16),
        "model.layers.0.input_layernorm.weight": mx.ones((128,), dtype=mx.bfloat16),
        "model.layers.0.linear_attn.A_log": mx.ones((4,), dtype=mx.float32),
        "vision_tower.blocks.0.proj.weight": mx.ones((8, 8), dtype=mx.bfloat16),
    }
    first = {name: array for name, array in arrays.items() if "layers.1" not in name}
    mx.save_safetensors(str(tmp_path / "model-00001-of-00002.safetensors"), first)
    rest = {name: array for name, array in arrays.items() if "layers.1" in name}
    mx.save_safetensors(str(tmp_path / "model-00002-of-00002.safetensors"), rest)
    mx.save_safetensors(str(tmp_path / "mtp.safetensors"), {"mtp.fc.weight": mx.ones((4, 4))})
    paths = {
        "model.embed_tokens": (8, 64), "model.layers.0.self_attn.q_proj": (3, 32),
        "model.layers.1.self_attn.q_proj": (4, 128), "model.layers.1.mlp.switch_mlp.up_proj": (2, 64),
        "lm_head": (6, 64),
    }  # fmt: skip
    settings = {name: {"bits": bits, "group_size": size} for name, (bits, size) in paths.items()}
    config = {"model_type": "qwen3", "quantization": {"bits": 4, "group_size": 64, "mode": "affine", **settings}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_widths_groups_and_kinds(model: Path) -> None:
    report = inspect(model)
    found = {tensor.name: tensor for tensor in report.tensors}
    assert (found["model.layers.0.self_attn.q_proj"].bits, found["model.layers.0.self_attn.q_proj"].group_size) == (
        3,
        32,
    )
    assert (found["model.layers.1.self_attn.q_proj"].bits, found["model.layers.1.self_attn.q_proj"].group_size) == (
        4,
        128,
    )
    bank = found["model.layers.1.mlp.switch_mlp.up_proj"]
    assert (bank.kind, bank.bits, bank.shape, bank.role, bank.layer) == (
        "experts",
        2,
        (4, 64, 128),
        "switch_mlp.up_proj",
        1,
    )
    kinds = {name: tensor.kind for name, tensor in found.items()}
    assert kinds["model.embed_tokens"] == "embedding" and kinds["lm_head"] == "head"
    assert kinds["model.layers.0.input_layernorm"] == "norm" and kinds["model.layers.0.linear_attn.A_log"] == "other"
    assert kinds["vision_tower.blocks.0.proj"] == "vision"
    assert found["model.layers.0.mlp.up_proj"].bits == 16 and not found["model.layers.0.mlp.up_proj"].quantized
    assert report.notes == ()


def test_sizes_are_those_of_the_files(model: Path) -> None:
    report = inspect(model)
    stored = sum(tensor.bytes for tensor in report.tensors)
    assert report.file_bytes == stored + report.header_bytes
    assert report.file_bytes == sum(path.stat().st_size for path in model.glob("model*.safetensors"))
    assert set(report.side) == {"mtp.safetensors"}
    codes = report.quantized
    assert report.bpw == pytest.approx(8 * sum(t.bytes for t in codes) / sum(t.params for t in codes))
    assert sum(row.bytes for row in by_kind(report.tensors)) == stored


def test_depth_runs_from_embedding_to_head(model: Path) -> None:
    rows = depth(inspect(model).tensors)
    assert list(rows)[0] == "embed_tokens" and list(rows)[-1] == "lm_head"
    assert rows["q_proj"] == {0: 3, 1: 4} and rows["lm_head"] == {None: 6} and rows["up_proj"] == {0: 16}
    assert "proj" not in rows  # vision stays out


def test_config_that_disagrees_is_noted(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["quantization"]["lm_head"] = {"bits": 4, "group_size": 64}
    (model / "config.json").write_text(json.dumps(config))
    (note,) = inspect(model).notes
    assert note == "1 tensor: config.json disagrees with the stored shapes (first: lm_head)"


def test_kinds_of_the_plan_win_and_receipts_are_read(model: Path) -> None:
    (model / "optiq").mkdir()
    plan = {"schema": 1, "choices": [{"name": "model.layers.0.mlp.up_proj", "kind": "heads"}]}
    (model / "optiq/plan.json").write_text(json.dumps(plan))
    (model / "optiq_metadata.json").write_text(json.dumps({"method": "optiq_mixed_precision", "achieved_bpw": 5.59}))
    report = inspect(model)
    assert {tensor.name: tensor.kind for tensor in report.tensors}["model.layers.0.mlp.up_proj"] == "heads"
    assert report.metadata == {"method": "optiq_mixed_precision", "achieved_bpw": 5.59}


def test_hugging_face_directory(tmp_path: Path) -> None:
    arrays = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": mx.ones((8, 64), dtype=mx.bfloat16) for i in range(3)}
    arrays["mtp.layers.0.self_attn.q_proj.weight"] = mx.ones((8, 64), dtype=mx.bfloat16)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    report = inspect(tmp_path)
    assert report.bpw is None and [row.kind for row in by_kind(report.tensors)] == ["experts", "mtp"]
    assert depth(report.tensors) == {"experts.up_proj": {0: 16}}


def test_faults_are_one_clear_line(model: Path, tmp_path: Path) -> None:
    shard = model / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(FormatError, match=r"model-00002-of-00002.safetensors is truncated: it has \d+ bytes"):
        inspect(model)
    (model / "config.json").unlink()
    with pytest.raises(InputError, match="has no config.json"):
        inspect(model)
    with pytest.raises(InputError, match="is not there"):
        inspect(tmp_path / "gone")


def test_report_is_json(model: Path) -> None:
    data = json.loads(json.dumps(inspect(model).as_json()))
    assert (
        data["schema"] == 1 and len(data["tensors"]) == 9 and data["side"] == {"mtp.safetensors": data["side"]["mtp.safetensors"]}
    )


def test_needs_no_mlx() -> None:
    code = "import sys; import optiq.models.inspect; sys.exit('mlx' in sys.modules or 'mlx_lm' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
