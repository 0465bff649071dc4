"""What a model directory holds, from headers and config alone: bits per tensor, bytes per kind, side files.

Works on any MLX or Hugging Face safetensors directory, and on those that the reference product published. Loads no
weights, imports no MLX. Kinds come from `optiq/plan.json` where there is one and from the usual names otherwise.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from optiq.models import shards
from optiq.plan import table
from optiq.plan.size import AFFINE_BITS, AFFINE_GROUP_SIZES, DTYPE_BYTES

KINDS = ("embedding", "linear", "experts", "heads", "head", "norm", "other", "mtp", "vision")
QUANTIZABLE = KINDS[:5]
FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")
_VISION = re.compile(r"(^|\.)(visual|vision_tower|vision_model|audio_tower|multi_modal_projector)\.")
_MTP = re.compile(r"(^|\.)mtp\.")
_EMBEDDING = ("embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embed_in")
_HEAD = ("lm_head", "output", "embed_out")


@dataclass(frozen=True)
class Tensor:
    """One weight with its scales and biases.

    ``bits`` is the width of a code where quantized, of the dtype otherwise; ``group_size`` 0 means not quantized;
    ``role`` is the name without its place (``q_proj``), ``layer`` its depth or None.
    """

    name: str
    kind: str
    role: str
    layer: int | None
    shape: tuple[int, ...]
    bits: int
    group_size: int
    mode: str
    dtype: str
    params: int
    bytes: int

    @property
    def quantized(self) -> bool:
        """Whether it is stored as codes."""
        return self.group_size > 0


@dataclass(frozen=True)
class Report:
    """Everything that `optiq inspect` shows of one directory; sizes in bytes."""

    path: str
    architecture: str
    tensors: tuple[Tensor, ...]
    files: Mapping[str, int]
    side: Mapping[str, int]
    header_bytes: int
    metadata: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def quantized(self) -> list[Tensor]:
        """The tensors stored as codes."""
        return [tensor for tensor in self.tensors if tensor.quantized]

    @property
    def params(self) -> int:
        """Weights of the model files, scales and biases not counted."""
        return sum(tensor.params for tensor in self.tensors)

    @property
    def file_bytes(self) -> int:
        """Bytes of the model files: what `--like` spends."""
        return sum(self.files.values())

    @property
    def bpw(self) -> float | None:
        """Bits per weight of the quantized tensors (codes, scales, biases); None where nothing is quantized."""
        params = sum(tensor.params for tensor in self.quantized)
        return 8 * sum(tensor.bytes for tensor in self.quantized) / params if params else None

    @property
    def file_bpw(self) -> float:
        """Bits of the model files over all weights in them."""
        return 8 * self.file_bytes / self.params if self.params else 0.0

    def as_json(self) -> dict[str, Any]:
        """The report as plain data, for ``--json``."""
        return {
            "schema": 1,
            "path": self.path,
            "architecture": self.architecture,
            "params": self.params,
            "bpw": self.bpw,
            "file_bpw": self.file_bpw,
            "file_bytes": self.file_bytes,
            "header_bytes": self.header_bytes,
            "files": dict(self.files),
            "side": dict(self.side),
            "kinds": [asdict(row) for row in by_kind(self.tensors)],
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "metadata": None if self.metadata is None else without_lists(self.metadata),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class KindRow:
    """A line of the table: tensors of one kind that are stored alike."""

    kind: str
    bits: int
    group_size: int
    mode: str
    tensors: int
    params: int
    bytes: int


def inspect(directory: str | os.PathLike[str]) -> Report:
    """Read the headers, the config and the receipts of a model directory.

    Raises:
        InputError: not a model directory.
        ModelError: missing shards.
        FormatError: a truncated or damaged file.
    """
    root = Path(directory)
    config = shards.read_config(root)
    found = shards.scan(root)
    entries: dict[str, shards.Entry] = {}
    for file in found:
        entries.update(shards.read_header(file))
    plan = table.read_plan(root)
    kinds = {str(choice["name"]): str(choice["kind"]) for choice in _choices(plan)}
    tensors, notes = _tensors(entries, config, kinds)
    return Report(
        path=str(root),
        architecture=str(config.get("model_type") or "unknown"),
        tensors=tuple(tensors),
        files={file.name: file.stat().st_size for file in found},
        side={str(file.relative_to(root)): file.stat().st_size for file in shards.side_files(root)},
        header_bytes=sum(shards.header_bytes(file) for file in found),
        metadata=table.read_metadata(root),
        plan=plan,
        notes=tuple(notes),
    )


def by_kind(tensors: Sequence[Tensor]) -> list[KindRow]:
    """Lines of the table: kinds in a fixed order, within them the widths from low to high."""
    groups: dict[tuple[int, str, int, int, str], list[Tensor]] = {}
    for tensor in tensors:
        key = (_rank(tensor.kind), tensor.kind, tensor.bits, tensor.group_size, tensor.mode)
        groups.setdefault(key, []).append(tensor)
    return [
        KindRow(kind, bits, size, mode, len(group), sum(t.params for t in group), sum(t.bytes for t in group))
        for (_, kind, bits, size, mode), group in sorted(groups.items())
    ]


def depth(tensors: Sequence[Tensor]) -> dict[str, dict[int | None, int]]:
    """Role → layer → bits: embedding, layers, head; None is the depth of tensors outside the layers.

    Tensors that no plan would quantize (norms, convolutions, vision) are left out; where several of one role stand at
    one depth (unfused experts) the lowest width is shown.
    """
    rows: dict[str, dict[int | None, int]] = {}
    for tensor in sorted(tensors, key=lambda tensor: (tensor.kind == "head") - (tensor.kind == "embedding")):
        if tensor.kind in QUANTIZABLE:
            row = rows.setdefault(tensor.role, {})
            row[tensor.layer] = min(tensor.bits, row.get(tensor.layer, tensor.bits))
    return rows


def _choices(plan: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The usable choices of a plan that may have been written by another version."""
    found = (plan or {}).get("choices")
    rows = found if isinstance(found, list) else []
    return [row for row in rows if isinstance(row, Mapping) and {"name", "kind"} <= set(row)]


def _rank(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def without_lists(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without its per-layer part, which the tensors say already."""
    return {key: value for key, value in metadata.items() if key not in ("per_layer", "optimization")}


def _tensors(
    entries: Mapping[str, shards.Entry], config: Mapping[str, Any], kinds: Mapping[str, str]
) -> tuple[list[Tensor], list[str]]:
    """Join codes with their scales and biases."""
    settings = config.get("quantization") or config.get("quantization_config")
    settings = settings if isinstance(settings, Mapping) else {}
    tensors, notes = [], []
    for name in sorted(entries, key=_natural):
        entry = entries[name]
        base, _, last = name.rpartition(".")
        if last in ("scales", "biases") and f"{base}.weight" in entries and f"{base}.scales" in entries:
            continue
        scales = entries.get(f"{base}.scales") if last == "weight" and entry.dtype == "U32" else None
        if scales is not None and entry.shape and scales.shape:
            tensor, note = _quantized(base, entry, scales, entries.get(f"{base}.biases"), settings, kinds)
            notes += [note] if note else []
        else:
            tensor = _dense(name, base if last == "weight" else name, entry, kinds)
        tensors.append(tensor)
    return tensors, _summed(notes)


def _quantized(
    base: str,
    codes: shards.Entry,
    scales: shards.Entry,
    biases: shards.Entry | None,
    settings: Mapping[str, Any],
    kinds: Mapping[str, str],
) -> tuple[Tensor, str]:
    """Infer width and group size: codes give ``bits·I``, scales give ``I/group_size``; the config decides between them.

    Returns:
        The tensor, and a note where config and shapes disagree.
    """
    own = settings.get(base)
    said = own if isinstance(own, Mapping) else settings
    mode = str(said.get("mode") or settings.get("mode") or "affine")
    product = 32 * codes.shape[-1] // max(scales.shape[-1], 1)  # bits times group size
    sizes = [int(said.get("group_size") or settings.get("group_size") or 64), *AFFINE_GROUP_SIZES, 16]
    fitting = [size for size in sizes if product % size == 0 and product // size in AFFINE_BITS]
    group_size = fitting[0] if fitting else sizes[0]
    bits = product // group_size
    note = ""
    if fitting and said.get("bits") and (bits, group_size) != (int(said["bits"]), sizes[0]):
        note = "config.json disagrees with the stored shapes"
    elif not fitting:
        note = "shapes of codes and scales fit no known width"
    shape = (*codes.shape[:-1], scales.shape[-1] * group_size)
    size = sum(entry.end - entry.start for entry in (codes, scales, biases) if entry is not None)
    kind = kinds.get(base) or _kind(base, shape)
    place = _place(base)
    return Tensor(base, kind, *place, shape, bits, group_size, mode, scales.dtype, prod(shape), size), note and f"{base}: {note}"


def _dense(name: str, base: str, entry: shards.Entry, kinds: Mapping[str, str]) -> Tensor:
    bits = 8 * DTYPE_BYTES.get(entry.dtype, 1)
    kind = kinds.get(base) or (_kind(base, entry.shape) if base != name else _parameter_kind(name, entry.shape))
    size = entry.end - entry.start
    mode = "" if entry.dtype in FLOAT_DTYPES else "packed"
    return Tensor(base, kind, *_place(base), entry.shape, bits, 0, mode, entry.dtype, prod(entry.shape), size)


def _parameter_kind(name: str, shape: tuple[int, ...]) -> str:
    """Of a parameter that is not some module's ``weight``: a bias, a decay, or a bank as some checkpoints keep it."""
    if _apart(name):
        return _apart(name)
    return "experts" if len(shape) == 3 and ".experts." in name else "other"


def _kind(base: str, shape: tuple[int, ...]) -> str:
    role = base.rpartition(".")[2]
    if _apart(base):
        return _apart(base)
    if role in _EMBEDDING:
        return "embedding"
    if role in _HEAD and _place(base)[1] is None:
        return "head"
    if "norm" in role or role.startswith("ln_"):
        return "norm"
    if "switch_mlp" in base or re.search(r"\.experts(\.|$)", base):
        return "experts"
    return "linear" if len(shape) == 2 else "other"


def _apart(name: str) -> str:
    """The kind of what is not the language model proper: ``vision`` (and audio) or ``mtp``; empty for the rest."""
    return "vision" if _VISION.search(name) else "mtp" if _MTP.search(name) else ""


def _place(base: str) -> tuple[str, int | None]:
    """Role and layer of a module path: ``model.layers.3.mlp.experts.7.up_proj`` → (``experts.up_proj``, 3)."""
    parts = base.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    role = parts[-1]
    if ("experts" in parts or "shared_expert" in parts or "switch_mlp" in parts) and len(parts) > 1:
        owner = next(part for part in parts if part in ("experts", "shared_expert", "switch_mlp"))
        role = role if role == owner else f"{owner}.{role}"
    return role, int(parts[numbers[0]]) if numbers else None


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split("."))


def _summed(notes: Sequence[str]) -> list[str]:
    """One line per kind of note with the number of tensors and the first of them."""
    counts = Counter(note.split(": ", 1)[1] for note in notes)
    lines = []
    for text, count in counts.items():
        first = next(note for note in notes if note.endswith(text)).split(": ")[0]
        lines.append(f"{count} {'tensor' if count == 1 else 'tensors'}: {text} (first: {first})")
    return lines
