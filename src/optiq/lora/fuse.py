"""A model directory that computes with plain weights what a model computes with an adapter.

    W' = W + s B A          W' = m / |W + s B A| (W + s B A)  for DoRA

W' is coded again at the width and group size that the model's plan gave the layer, rounded to nearest; a layer without codes
stays without. Layers that the adapter does not touch keep their codes, whichever encoder made them, and a head for multi-token
prediction comes along. How far the result is from model and adapter is measured on the packaged *dev* text.

Data in: a model directory and an adapter. Data out: a stock MLX directory, `Fused`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from optiq import files
from optiq.events import QUIET, Events
from optiq.lora.adapters import Adapter
from optiq.lora.layers import Part
from optiq.measure.divergence import divergence
from optiq.measure.text import samples
from optiq.measure.tokens import tokenise
from optiq.models import chat, directory, mtp
from optiq.models.checkpoint import Checkpoint
from optiq.models.places import check_apart, check_output
from optiq.models.topology import topology
from optiq.plan.size import affine_bytes
from optiq.plan.types import UNQUANTIZED_BITS, Choice

ROWS, LENGTH = 4, 256  # per domain; tokens


@dataclass(frozen=True)
class Fused:
    """What was written.

    Args:
        path: the directory.
        layers: that the adapter changed.
        bytes: of the weights.
        kl: figures of the divergence from model and adapter (`Divergence.summary`); None where there is no tokenizer.
    """

    path: Path
    layers: int
    bytes: int
    kl: dict[str, object] | None


def fuse(source: Path, model: Any, adapter: Adapter, output: Path, overwrite: bool = False, events: Events = QUIET) -> Fused:
    """Write the directory.

    Args:
        source: the model's directory.
        model: it, loaded.
        adapter: see `optiq.lora.adapters.load_adapter`.
        output: directory to write.
        overwrite: replace one that is there.
        events: progress.

    Raises:
        InputError: the output is there, is no model directory that may be replaced, or is or holds the model or the adapter.
    """
    check_output(output, overwrite)
    check_apart("-o", output, source, "the model {} that is fused")
    check_apart("-o", output, adapter.path, "the adapter {}")
    checkpoint = Checkpoint.open(source)
    found, modules = topology(checkpoint), dict(model.named_modules())
    choices = {tensor.name: _choice(tensor.name, tensor.shape, modules[tensor.name]) for tensor in found.tensors}
    changed = replace(checkpoint, transform=lambda name, value: _changed(value, adapter.parts.get(name.removesuffix(".weight"))))

    def fetch(name: str) -> mx.array:
        path, _, part = name.rpartition(".")
        if path not in adapter.parts:
            return modules[path][part]  # type: ignore[no-any-return]
        dense, choice = changed.weights()[f"{path}.weight"].astype(checkpoint.dtype), choices[path]
        if choice.bits == UNQUANTIZED_BITS:
            return dense
        coded = mx.quantize(dense, group_size=choice.group_size, bits=choice.bits)
        return dict(zip(("weight", "scales", "biases"), coded, strict=True))[part]

    with files.building(output, overwrite) as out:
        with events.stage("write"):
            directory.copy_side_files(source, out)
            extra = mtp.carry(checkpoint, out)
            files.write_json(out / "config.json", directory.config(checkpoint, found, choices, extra), indent=4)
            size = directory.Layout(checkpoint, found).write(out, choices, fetch)
        kl = _measured(changed, out, events)
        facts = {"schema": 1, "model": str(source), "adapter": str(adapter.path), "adapter_sha256": adapter.sha256, "kl": kl}
        files.write_json(out / "optiq" / "fused.json", facts)
    return Fused(output, len(adapter.parts), size, kl)


def _choice(name: str, shape: tuple[int, ...], module: Any) -> Choice:
    """The width that a layer has in the model."""
    if "scales" not in module:
        return Choice(name, UNQUANTIZED_BITS, 0, 2 * prod(shape), 0.0)
    return Choice(name, module.bits, module.group_size, affine_bytes(shape, module.bits, module.group_size), 0.0)


def _changed(value: mx.array, part: Part | None) -> mx.array:
    """W' in float32, from W; what no adapter touches as it is."""
    if part is None:
        return value
    weight = value.astype(mx.float32) + part.scale * (part.b.astype(mx.float32) @ part.a.astype(mx.float32))
    if part.magnitude is None:
        return weight
    return weight * (part.magnitude.astype(mx.float32) / mx.linalg.norm(weight, axis=1))[:, None]


def _measured(reference: Checkpoint, out: Path, events: Events) -> dict[str, object] | None:
    if not chat.has_tokenizer(reference.path):
        return None
    tokens = tokenise(samples("dev"), chat.load_tokenizer(reference.path), LENGTH, ROWS)
    return divergence(reference, out, tokens, events).summary()
