"""`optiq inspect`: the table, the strip, the picture and JSON of a small directory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from optiq.cli import inspect as command
from optiq.errors import InputError
from optiq.events import QUIET

mx = pytest.importorskip("mlx.core")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    arrays = {}
    for layer, bits in enumerate((2, 4, 8)):
        name = f"model.layers.{layer}.mlp.up_proj"
        codes, scales, biases = mx.quantize(mx.ones((64, 128), dtype=mx.bfloat16), group_size=64, bits=bits)
        arrays |= {f"{name}.weight": codes, f"{name}.scales": scales, f"{name}.biases": biases}
    arrays["model.embed_tokens.weight"] = mx.ones((96, 128), dtype=mx.bfloat16)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    mx.save_safetensors(str(tmp_path / "mtp.safetensors"), {"mtp.fc.weight": mx.ones((4, 4))})
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization": {"bits": 4, "group_size": 64}}')
    return tmp_path


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    command.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_table_and_strip(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(arguments(model), QUIET) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "bits per weight  5.1667 (3 tensors, codes, scales and biases)" in lines
    assert "up_proj       248" in lines and "embed_tokens  b" in lines
    assert any(line.startswith("  mtp.safetensors") for line in lines)
    assert any(line.split()[:3] == ["embedding", "16", "-"] for line in lines)


def test_json_and_picture(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert command.run(arguments(model, "--json", "--picture", tmp_path / "p.svg"), QUIET) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["bpw"] == pytest.approx(31 / 6) and (tmp_path / "p.svg").read_bytes().startswith(b"<?xml")


def test_picture_ending_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its ending is \.bmp"):
        command.run(arguments(tmp_path, "--picture", "x.bmp"), QUIET)


def test_colours_are_for_terminals() -> None:
    assert command.strip({"q_proj": {0: 2, 2: 16}}, coloured=False).splitlines()[-1] == "q_proj  2.b"
    assert "\x1b[48;5;229;" in command.strip({"q_proj": {0: 2}}, coloured=True)
