"""Safetensors headers and directories: what is read, and one clear line for each way they break."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from optiq.errors import FormatError, InputError, ModelError
from optiq.models import shards

mx = pytest.importorskip("mlx.core")


def write(path: Path, header: object, payload: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_what_mlx_writes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {"a": mx.arange(6, dtype=mx.uint32).reshape(2, 3), "b.c": mx.ones((4,), dtype=mx.bfloat16)}
    mx.save_safetensors(str(path), arrays, metadata={"format": "mlx"})
    header = shards.read_header(path)
    assert set(header) == {"a", "b.c"} and header["b.c"].dtype == "BF16"
    dtype, shape, start, end = header["a"]
    assert (dtype, shape) == ("U32", (2, 3))
    assert struct.unpack("<6I", path.read_bytes()[start:end]) == tuple(range(6))
    assert shards.read_metadata(path) == {"format": "mlx"}
    assert shards.header_bytes(path) + 24 + 8 == path.stat().st_size


@pytest.mark.parametrize(
    ("header", "payload", "message"),
    [
        ({"a": entry([4], 0, 4)}, b"123", r"is truncated: it has \d+ bytes, its header says \d+"),
        ({"a": entry([4], 0, 4)}, b"12345", "1 bytes too many"),
        ({"a": entry([4], 0, 4), "b": entry([4], 2, 6)}, b"123456", "tensor b starts at byte .* inside tensor a"),
        ({"a": entry([2], 0, 2), "b": entry([2], 3, 5)}, b"12345", "1 bytes between tensor a and tensor b"),
        ({"a": entry([4], 0, 3)}, b"123", r"tensor a spans 3 bytes, U8 \[4\] takes 4"),
        ({"a": entry([4], 0, 4, "Q9")}, b"1234", "tensor a has the unknown dtype Q9"),
        ({"a": {"dtype": "U8"}}, b"", "tensor a lacks a readable dtype, shape or data_offsets"),
        ({"a": entry([-4], 0, 4)}, b"1234", "neither may be negative"),
        ([1], b"", "the header holds a JSON list, expected an object"),
        (b"{nonsense", b"", "the header is not valid JSON"),
        (b"\xff\xfe{}", b"", "the header is not valid JSON"),
    ],
)
def test_damaged_files_name_the_fault(tmp_path: Path, header: object, payload: bytes, message: str) -> None:
    path = write(tmp_path / "x.safetensors", header, payload)
    with pytest.raises(FormatError, match=message) as caught:
        shards.read_header(path)
    assert str(path) in str(caught.value)


def test_files_too_short_for_their_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"1234")
    with pytest.raises(FormatError, match="has 4 bytes, a safetensors file has at least 8"):
        shards.read_header(path)
    path.write_bytes(struct.pack("<Q", 500) + b"{}")
    with pytest.raises(FormatError, match="it has 10 bytes, its header takes 508"):
        shards.read_header(path)
    path.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(FormatError, match="the most allowed is 100000000"):
        shards.read_header(path)
    with pytest.raises(InputError, match="no file"):
        shards.read_header(tmp_path / "gone.safetensors")


def test_scan_takes_model_files_and_leaves_side_files(tmp_path: Path) -> None:
    for name in ("model-00001-of-00002", "model-00002-of-00002", "mtp", "optiq_vision", "model-mtp"):
        write(tmp_path / f"{name}.safetensors", {})
    (tmp_path / "optiq").mkdir()
    write(tmp_path / "optiq/mtp.safetensors", {})
    assert [path.name for path in shards.scan(tmp_path)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert [path.name for path in shards.side_files(tmp_path)] == [
        "model-mtp.safetensors", "mtp.safetensors", "mtp.safetensors", "optiq_vision.safetensors",
    ]  # fmt: skip


def test_scan_falls_back_to_other_names(tmp_path: Path) -> None:
    write(tmp_path / "weights.00.safetensors", {})
    write(tmp_path / "mtp.safetensors", {})
    assert [path.name for path in shards.scan(tmp_path)] == ["weights.00.safetensors"]
    assert [path.name for path in shards.side_files(tmp_path)] == ["mtp.safetensors"]


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "model-1.safetensors", {})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="2 of 3 files named .* are missing: model-2.safetensors, model-3.safetensors"):
        shards.scan(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(FormatError, match="has no weight_map"):
        shards.scan(tmp_path)


def test_directories_without_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there, expected a model directory"):
        shards.scan(tmp_path / "gone")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors; it holds pytorch_model.bin, a form that is not read"):
        shards.scan(tmp_path)


def test_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no config.json, so it is no model directory"):
        shards.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(FormatError, match="holds a JSON list"):
        shards.read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert shards.read_config(tmp_path) == {"model_type": "llama"}
    with pytest.raises(InputError, match="is a file"):
        shards.read_config(tmp_path / "config.json")
