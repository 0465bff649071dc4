"""What a model directory stores: exact bytes and bits per weight, read from the safetensors headers alone.

In: an MLX or Hugging Face directory. Out: `Storage`. Knows nothing of architectures.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Storage:
    """`file_bytes` of `model*.safetensors`; `bpw` over the matrices that quantizers treat; every other file's bytes."""

    file_bytes: int
    bpw: float
    side_bytes: dict[str, int]


def header(path: Path) -> dict[str, dict]:
    """The entries of one safetensors file: dtype, shape and offsets by tensor name."""
    with path.open("rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    entries.pop("__metadata__", None)
    return entries


def entries(model_dir: Path) -> dict[str, dict]:
    """The tensors of all `model*.safetensors`, without a multi-token prediction head."""
    found: dict[str, dict] = {}
    for path in sorted(model_dir.glob("model*.safetensors")):
        found |= {name: entry for name, entry in header(path).items() if "mtp." not in name}
    if not found:
        raise SystemExit(f"{model_dir}: no model*.safetensors")
    return found


def entry_bytes(entry: dict) -> int:
    """Bytes of one tensor's data."""
    first, last = entry["data_offsets"]
    return last - first


def storage(model_dir: Path) -> Storage:
    """Exact file bytes and bits per weight of the matrices (codes, scales and biases; 16 bits where left dense).

    A quantized matrix has `rows` x `columns` weights with columns = words * 32 / bits; both are read from the shapes
    of its codes and scales and from the group size in `config.json`.
    """
    quantization = json.loads((model_dir / "config.json").read_text()).get("quantization", {})
    tensors = entries(model_dir)
    bits = weights = 0
    for name, entry in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or len(entry["shape"]) < 2 or "conv1d" in name:
            continue
        scales = tensors.get(f"{module}.scales")
        if scales is None:
            weights += math.prod(entry["shape"])
            bits += 8 * entry_bytes(entry)
            continue
        settings = quantization.get(module) or quantization
        weights += math.prod(scales["shape"]) * settings["group_size"]
        parts = [entry, scales, *filter(None, [tensors.get(f"{module}.biases")])]
        bits += 8 * sum(entry_bytes(part) for part in parts)
    files = {str(p.relative_to(model_dir)): p.stat().st_size for p in model_dir.rglob("*") if p.is_file()}
    model = {name for name in files if name.startswith("model") and name.endswith(".safetensors")}
    side = {name: size for name, size in sorted(files.items()) if name not in model}
    return Storage(sum(files[name] for name in model), bits / weights, side)
