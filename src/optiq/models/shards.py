"""Safetensors by hand: headers of single files, and which files of a directory hold the model.

Reads no weights and imports no MLX. Every check is against the real size of the file, so that a truncated download
is told before anything is loaded. Source of the layout: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from optiq.errors import FormatError, InputError, ModelError
from optiq.plan.size import DTYPE_BYTES

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
SUB_BYTE_DTYPES = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # bits per element

SIDE_NAMES = (
    "mtp.safetensors",
    "model-mtp.safetensors",
    "optiq_vision.safetensors",
    "adapters.safetensors",
    "adapter_model.safetensors",
    "joint_head.safetensors",
)
"""Safetensors at the root of a model directory that are not the model's own weights."""

SIDE_FOLDERS = ("optiq", "mtp")


class Entry(NamedTuple):
    """One tensor of a file: dtype as safetensors names it, bytes ``[start, end)`` counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """The tensors of a safetensors file, by name, in the order of their data.

    Raises:
        InputError: no such file.
        FormatError: truncated, overlapping, not JSON or otherwise not a safetensors file.
    """
    file = Path(path)
    header, data_start, file_bytes = _read_json(file)
    entries = {name: _entry(file, name, raw, data_start) for name, raw in header.items() if name != "__metadata__"}
    ordered = dict(sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].end)))
    end, previous = data_start, "the header"
    for name, entry in ordered.items():
        if entry.start < end:
            raise FormatError(f"{file}: tensor {name} starts at byte {entry.start}, inside {previous} that ends at {end}")
        if entry.start > end:
            raise FormatError(f"{file}: {entry.start - end} bytes between {previous} and tensor {name} belong to nothing")
        end, previous = entry.end, f"tensor {name}"
    if end > file_bytes:
        raise FormatError(f"{file} is truncated: it has {file_bytes} bytes, its header says {end}; download or write it again")
    if end < file_bytes:
        raise FormatError(f"{file} has {file_bytes} bytes, its header says {end}: {file_bytes - end} bytes too many")
    return ordered


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The ``__metadata__`` of a safetensors file, empty if there is none.

    Raises:
        InputError: no such file.
        FormatError: not a safetensors file.
    """
    raw = _read_json(Path(path))[0].get("__metadata__") or {}
    return {str(key): str(value) for key, value in raw.items()}


def header_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes before the first weight: the 8-byte length and the JSON header.

    Raises:
        InputError: no such file.
        FormatError: not a safetensors file.
    """
    return _read_json(Path(path))[1]


def scan(directory: str | os.PathLike[str]) -> list[Path]:
    """The files that hold the model's weights, sorted: ``model*.safetensors``, or what else is not a side file.

    Raises:
        InputError: no such directory, or not a model directory.
        ModelError: no weights in safetensors form, or shards that the index names are missing.
    """
    root = Path(directory)
    if not root.is_dir():
        what = "a file" if root.exists() else "not there"
        raise InputError(f"{root} is {what}, expected a model directory with config.json and *.safetensors")
    files = [path for path in sorted(root.glob("*.safetensors")) if path.name not in SIDE_NAMES]
    named = [path for path in files if path.name.startswith("model")]
    found = named or files
    _check_index(root)
    if not found:
        other = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf", "*.npz") for path in root.glob(pattern))
        hint = f"; it holds {other[0]}, a form that is not read" if other else ""
        raise ModelError(f"{root} holds no *.safetensors{hint}; expected model.safetensors or numbered shards")
    return found


def model_bytes(directory: str | os.PathLike[str]) -> int:
    """Bytes of the model's files (what `--like` spends), each checked against its header.

    Raises:
        OptiqError: as `scan` and `read_header`.
    """
    found = scan(directory)
    for file in found:
        read_header(file)
    return sum(file.stat().st_size for file in found)


def side_files(directory: str | os.PathLike[str]) -> list[Path]:
    """Safetensors that stand beside the model: MTP heads, vision towers, adapters, at the root or in known folders."""
    root = Path(directory)
    inside = [path for folder in SIDE_FOLDERS for path in (root / folder).glob("*.safetensors")]
    named = any(path.name.startswith("model") and path.name not in SIDE_NAMES for path in root.glob("*.safetensors"))
    at_root = [
        path for path in root.glob("*.safetensors") if path.name in SIDE_NAMES or (named and not path.name.startswith("model"))
    ]
    return sorted(at_root + inside)


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The parsed ``config.json`` of a model directory.

    Raises:
        InputError: no such directory, or a directory without ``config.json``.
        FormatError: not a JSON object.
    """
    root = Path(directory)
    if not root.is_dir():
        what = "a file" if root.exists() else "not there"
        raise InputError(f"{root} is {what}, expected a model directory with config.json and *.safetensors")
    path = root / "config.json"
    if not path.is_file():
        raise InputError(f"{root} has no config.json, so it is no model directory; expected config.json and *.safetensors")
    return _json_object(path)


def _check_index(root: Path) -> None:
    index = root / "model.safetensors.index.json"
    if not index.is_file():
        return
    weight_map = _json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise FormatError(f"{index} has no weight_map; delete it or download it again")
    named = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in named if not (root / name).is_file() and not (root / "optiq" / name).is_file()]
    if missing:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise ModelError(f"{root}: {len(missing)} of {len(named)} files named in {index.name} are missing: {shown}")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise FormatError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


def _read_json(file: Path) -> tuple[dict[str, Any], int, int]:
    """Header object, first data byte, size of the file."""
    if file.exists() and not (file.is_file() or file.is_dir()):  # reading a pipe would wait for a writer
        raise FormatError(f"{file} is no regular file, expected a safetensors file")
    try:
        with file.open("rb") as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            first = stream.read(8)
            if len(first) < 8:
                raise FormatError(f"{file} has {file_bytes} bytes, a safetensors file has at least 8; download it again")
            (length,) = struct.unpack("<Q", first)
            if length > MAX_HEADER_BYTES:
                raise FormatError(
                    f"{file} says its header has {length} bytes, the most allowed is {MAX_HEADER_BYTES}; "
                    f"it is damaged or not a safetensors file"
                )
            if 8 + length > file_bytes:
                raise FormatError(
                    f"{file} is truncated: it has {file_bytes} bytes, its header takes {8 + length}; download it again"
                )
            text = stream.read(length)
    except FileNotFoundError:
        raise InputError(f"no file {file}") from None
    except OSError as error:
        raise FormatError(f"cannot read {file}: {error.strerror or error}") from None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: the header is not valid JSON ({error}); it is damaged or not a safetensors file") from None
    if not isinstance(header, dict):
        raise FormatError(f"{file}: the header holds a JSON {type(header).__name__}, expected an object")
    return header, 8 + length, file_bytes


def _entry(file: Path, name: str, raw: Any, data_start: int) -> Entry:
    try:
        dtype, shape = str(raw["dtype"]), tuple(int(axis) for axis in raw["shape"])
        start, end = (int(offset) for offset in raw["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise FormatError(f"{file}: tensor {name} lacks a readable dtype, shape or data_offsets") from None
    if min(shape, default=0) < 0 or start < 0:
        raise FormatError(f"{file}: tensor {name} has shape {list(shape)} and starts at {start}; neither may be negative")
    bits = 8 * DTYPE_BYTES[dtype] if dtype in DTYPE_BYTES else SUB_BYTE_DTYPES.get(dtype)
    if bits is None:
        raise FormatError(f"{file}: tensor {name} has the unknown dtype {dtype}")
    expected = prod(shape) * bits // 8
    if end - start != expected:
        raise FormatError(f"{file}: tensor {name} spans {end - start} bytes, {dtype} {list(shape)} takes {expected}")
    return Entry(dtype, shape, data_start + start, data_start + end)
