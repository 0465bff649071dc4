"""Damage tables: what every option of every tensor costs, in nats per token, by one of three methods.

    fisher  second-order prediction from one gradient pass (measure.statistics, measure.damage)
    kl      one tensor at a time: put its coded values in place, measure the true KL, put it back; resumable
    static  no forward pass: the relative squared error of the codes, weighted by what kind of tensor it is and how deep

The table is a list of `Item`s, the solver's input. `static` has no unit; its sums only rank plans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from optiq import files
from optiq.events import QUIET, Events
from optiq.kernels.affine import Coded
from optiq.kernels.memory import trim
from optiq.measure import walk
from optiq.measure.damage import damages, sampled_rows
from optiq.measure.divergence import kl
from optiq.measure.hidden import HiddenStore
from optiq.measure.statistics import Statistics
from optiq.models.stream import Stream
from optiq.models.topology import Tensor
from optiq.plan.options import make_options
from optiq.plan.types import UNQUANTIZED_BITS, Item, Option

METHODS = ("fisher", "kl", "static")

Encode = Callable[[mx.array, int, int, mx.array | None], Coded]


@dataclass(frozen=True)
class Candidates:
    """What may be chosen: widths and group sizes, and the encoder that will write them.

    Args:
        encode: (weight, bits, group size, gram) -> codes, the form that predictions are made with.
        feedback: the final encoder carries errors on, so predictions weigh errors by pivots.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    encode: Encode
    feedback: bool

    def options(self, tensor: Tensor) -> tuple[Option, ...]:
        """The options of one tensor; a family's own floor (routers) is kept."""
        wide = tuple(b for b in self.bits if b >= tensor.least_bits) or (max(self.bits),)
        return make_options(tensor.shape, wide, self.group_sizes)


def fisher(stream: Stream, statistics: Statistics, candidates: Candidates, events: Events = QUIET) -> list[Item]:
    """Predicted damages from a finished gradient pass."""
    items = []
    with events.stage("sensitivity", len(stream.topology.tensors), "tensors") as stage:
        for tensor in stream.topology.tensors:
            options = candidates.options(tensor)
            uses = statistics.uses(tensor)
            weight = _weight(stream, tensor)
            if uses:
                found = damages(tensor, weight, uses, options, candidates.encode, candidates.feedback)
            else:
                events.warn(f"{tensor.name}: nothing flowed through it during calibration; scored by its weights alone")
                found = [_static(tensor, stream, weight, option, candidates.encode) for option in options]
            items.append(Item(tensor.name, tensor.kind, tensor.shape, options, tuple(found)))
            stage.advance(note=tensor.name)
    return items


def measured(stream: Stream, ids: np.ndarray, candidates: Candidates, path: Path, events: Events = QUIET) -> list[Item]:
    """Damages by one-at-a-time measurement on tokens [N, L]; each tensor's row is kept in `path` as it is finished.

    Only the blocks from the tensor's own on are run again: what comes before is the reference's.
    """
    store = HiddenStore(path / "hidden")
    walk.forward(stream, ids, store, events)
    items = []
    with events.stage("sensitivity", len(stream.topology.tensors), "tensors") as stage:
        for tensor in stream.topology.tensors:
            options = candidates.options(tensor)
            file = path / f"{tensor.name}.json"
            kept = files.read_json(file, "measurement")["damages"] if file.exists() else {}
            key = [f"{o.bits}g{o.group_size}" for o in options]
            for name, option in zip(key, options, strict=True):
                if name not in kept:
                    kept[name] = _measure(stream, ids, store, tensor, option, candidates.encode)
                    files.write_json(file, {"schema": 1, "damages": kept})
            items.append(Item(tensor.name, tensor.kind, tensor.shape, options, tuple(kept[name] for name in key)))
            stage.advance(note=tensor.name)
    store.clear()
    return items


def static(stream: Stream, candidates: Candidates, events: Events = QUIET) -> list[Item]:
    """Damages without a forward pass."""
    items = []
    with events.stage("sensitivity", len(stream.topology.tensors), "tensors") as stage:
        for tensor in stream.topology.tensors:
            options = candidates.options(tensor)
            weight = _weight(stream, tensor)
            found = tuple(_static(tensor, stream, weight, option, candidates.encode) for option in options)
            items.append(Item(tensor.name, tensor.kind, tensor.shape, options, found))
            del weight
            trim()
            stage.advance(note=tensor.name)
    return items


def kl_operations(stream: Stream, tokens: int, candidates: Candidates) -> int:
    """Multiply-adds of the matrix products of `measured` without prefix reuse: one whole forward pass per option."""
    size = sum(prod(t.shape) for t in stream.topology.tensors if t.kind != "embedding" or stream.topology.tied)
    return sum(len(candidates.options(t)) for t in stream.topology.tensors) * tokens * size


def _weight(stream: Stream, tensor: Tensor) -> mx.array:
    """The original weight (not the reference's, which may be a simulated quantization)."""
    return stream.checkpoint.original().weights(native=True)[f"{tensor.name}.weight"]


def _measure(stream: Stream, ids: np.ndarray, store: HiddenStore, tensor: Tensor, option: Option, encode: Encode) -> float:
    if option.bits == UNQUANTIZED_BITS:
        return 0.0
    weight = _weight(stream, tensor).astype(mx.float32)
    changed = {f"{tensor.name}.weight": encode(weight, option.bits, option.group_size, None).dense()}
    total = 0.0
    for a, b in walk.batches(ids, 4 * store.width("0")):
        total += _batch_kl(stream, ids, store, tensor, changed, a, b)
    return max(total / ids.size, 0.0)


def _batch_kl(
    stream: Stream, ids: np.ndarray, store: HiddenStore, tensor: Tensor, changed: dict[str, mx.array], a: int, b: int
) -> float:
    """Summed KL of the rows [a, b) with one tensor changed; everything is put back."""
    part = mx.array(ids[a:b])
    reference = stream.tail(store.rows(str(stream.depth), a, b), part)
    mx.eval(reference)
    if tensor.block is None:
        stream.assign_outer(changed)
        first = 0 if tensor.kind == "embedding" else stream.depth
        hidden = stream.front(part) if first == 0 else store.rows(str(stream.depth), a, b)
    else:
        first, hidden = tensor.block, store.rows(str(tensor.block), a, b)
    for i in range(first, stream.depth):
        stream.load_block(i)
        if i == tensor.block:
            stream.assign_block(i, changed)
        hidden = stream.block(i, hidden)
        mx.eval(hidden)
        stream.release_block(i)
    value, _ = kl(reference, stream.tail(hidden, part))
    total = float(value.sum())
    if tensor.block is None:
        stream.load_outer()
    return total


def _static(tensor: Tensor, stream: Stream, weight: mx.array, option: Option, encode: Encode) -> float:
    """Relative squared error of the codes x prior x share of the parameters.

    Source of the prior: the reference product's static weights by kind and depth (reference notes, section 2).
    """
    if option.bits == UNQUANTIZED_BITS:
        return 0.0
    rows = weight.reshape(-1, weight.shape[-1])
    rows = rows[mx.array(sampled_rows(rows.shape))].astype(mx.float32)
    error = encode(rows, option.bits, option.group_size, None).dense() - rows
    relative = float(error.square().sum() / mx.maximum(rows.square().sum(), 1e-30))
    total = sum(prod(t.shape) for t in stream.topology.tensors)
    return relative * _prior(tensor, stream.depth) * prod(tensor.shape) / total


def _prior(tensor: Tensor, depth: int) -> float:
    if tensor.block is None:
        return 1.0
    edge = min(tensor.block, depth - 1 - tensor.block)
    base = 0.9 if edge == 0 else 0.65 if edge < max(1, depth // 8) else 0.35
    attention = 0.3 if "attn" in tensor.name else 0.0
    router = 0.4 if tensor.least_bits else 0.0
    experts = -0.1 if tensor.kind == "experts" else 0.0
    return base + attention + router + experts
