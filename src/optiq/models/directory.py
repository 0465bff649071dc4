"""The stock MLX directory that a converted model is: what is in it, in which types, and how it is written.

Knows names, shapes and bytes; the codes come in through a function. The result loads in an unmodified `mlx_lm.load`.
"""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from optiq import files
from optiq.models.checkpoint import HALF_TYPES, VISION_KEYS, Checkpoint
from optiq.models.save import Entry, entry, header, shards, stream_safetensors
from optiq.models.topology import Topology
from optiq.plan.size import safetensors_name
from optiq.plan.types import UNQUANTIZED_BITS, Choice

COPIED = ("*.jinja", "*.txt", "*.model", "*.tiktoken", "*.json", "*.jsonl", "LICENSE*", "NOTICE*")
NOT_COPIED = ("config.json", "model.safetensors.index.json", "optiq_metadata.json", "sensitivity_checkpoint.json")

Fetch = Callable[[str], mx.array]


class Layout:
    """Every tensor of the model file in order, with its stored type, for any plan.

    Args:
        checkpoint: the dense model.
        topology: its quantizable tensors.
    """

    def __init__(self, checkpoint: Checkpoint, topology: Topology):
        self.checkpoint, self.topology = checkpoint, topology
        weights = checkpoint.weights()
        model = checkpoint.skeleton()
        order = [name for name, _ in tree_flatten(model.parameters()) if name in weights]
        quantizable = {f"{tensor.name}.weight" for tensor in topology.tensors}
        keep = getattr(model, "cast_predicate", None) or (lambda name: True)
        self.fixed = {name: self._stored(name, weights[name], keep(name)) for name in order if name not in quantizable}
        self.order = order

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the tensors that no plan touches."""
        return sum(e.bytes for e in self.fixed.values())

    def header_bytes(self) -> int:
        """The most that headers can take, whatever the plan."""
        widest = [Choice(t.name, 8, 32, 0, 0.0) for t in self.topology.tensors]
        groups = shards(self.entries({c.name: c for c in widest}))
        return sum(len(header(group, {"format": "mlx"})) for _, group in groups)

    def entries(self, choices: Mapping[str, Choice]) -> list[Entry]:
        """The tensors of the model file for this plan."""
        shapes = {f"{t.name}.weight": t for t in self.topology.tensors}
        half = safetensors_name(str(self.checkpoint.dtype))
        found: list[Entry] = []
        for name in self.order:
            tensor = shapes.get(name)
            choice = choices.get(tensor.name) if tensor else None
            if tensor is None:
                found.append(self.fixed[name])
            elif choice is None or choice.bits == UNQUANTIZED_BITS:
                found.append(Entry(name, half, tensor.shape))
            else:
                found += coded_entries(f"{tensor.name}.", tensor.shape, choice, half)
        return found

    def write(self, out: Path, choices: Mapping[str, Choice], fetch: Fetch) -> int:
        """Write the model's shards and index into `out`; returns the bytes of all shards.

        Args:
            fetch: gives stored tensors of quantizable modules by full name (`….weight`, `….scales`, `….biases`).
        """
        weights = self.checkpoint.weights()

        def value(name: str) -> mx.array:
            if name in self.fixed:
                stored = weights.pop(name)
                return (
                    stored.astype(_dtype(self.fixed[name].dtype)) if self.fixed[name].dtype in ("BF16", "F16", "F32") else stored
                )
            return fetch(name)

        groups = shards(self.entries(choices))
        for file, group in groups:
            stream_safetensors(out / file, group, value, {"format": "mlx"})
        total = sum((out / file).stat().st_size for file, _ in groups)
        tensors = {e.name: file for file, group in groups for e in group}
        values_bytes = sum(e.bytes for _, group in groups for e in group)
        index = {"metadata": {"total_size": values_bytes}, "weight_map": dict(sorted(tensors.items()))}
        files.write_json(out / "model.safetensors.index.json", index)
        return total

    def _stored(self, name: str, value: mx.array, cast: bool) -> Entry:
        """Floating tensors in the model's 16-bit type, except those that the family keeps wider."""
        source = self.checkpoint.headers.get(name)
        if value.dtype == mx.float32 and cast:
            return Entry(name, safetensors_name(str(self.checkpoint.dtype)), tuple(value.shape))
        if value.dtype in HALF_TYPES and source is not None:
            return Entry(name, source[0], tuple(value.shape))
        return entry(name, value)


def coded_entries(prefix: str, shape: tuple[int, ...], choice: Choice, half: str) -> list[Entry]:
    """The three tensors [..., O, _] that stand for a quantized one [..., O, I]; `half` is the type of scales and biases."""
    lead, width = shape[:-1], shape[-1]
    groups = max(1, width // choice.group_size)
    return [
        Entry(f"{prefix}weight", "U32", (*lead, width * choice.bits // 32)),
        Entry(f"{prefix}scales", half, (*lead, groups)),
        Entry(f"{prefix}biases", half, (*lead, groups)),
    ]


def config(checkpoint: Checkpoint, topology: Topology, choices: Mapping[str, Choice], extra: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the result: the source's, with the quantization of every path."""
    result = copy.deepcopy(checkpoint.config)
    result.pop("quantization_config", None)
    pairs = Counter((c.bits, c.group_size) for c in choices.values() if c.bits != UNQUANTIZED_BITS)
    bits, group_size = max(pairs, key=lambda p: (pairs[p], -p[0])) if pairs else (4, 64)
    table: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": "affine"}
    for tensor in topology.tensors:
        c = choices[tensor.name]
        quantized = {"group_size": c.group_size, "bits": c.bits, "mode": "affine"}
        table[tensor.name] = quantized if c.bits != UNQUANTIZED_BITS else False
    result["quantization"] = table
    result["quantization_config"] = copy.deepcopy(table)
    result.update(extra)
    return result


def copy_side_files(source: Path, out: Path) -> list[str]:
    """Copy tokenizer, template, generation settings and licence files; returns their names."""
    copied = []
    for pattern in COPIED:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and file.name not in NOT_COPIED and not file.name.startswith("README"):
                shutil.copyfile(file, out / file.name)
                copied.append(file.name)
    return copied


def left_out(checkpoint: Checkpoint) -> dict[str, int]:
    """Tensors of the checkpoint that the language model does not use: how many of the vision tower."""
    return {"vision": sum(name.startswith(VISION_KEYS) for name in checkpoint.headers)}


def licence(path: Path) -> str | None:
    """The licence that the source's model card names, if it names one."""
    card = path / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        if line.startswith("license:"):
            return line.partition(":")[2].strip().strip("\"'") or None
    return None


def _dtype(name: str) -> mx.Dtype:
    return {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}[name]
