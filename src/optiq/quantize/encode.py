"""Encode a model block by block, each block fitted to inputs from the blocks before it as they were stored.

In: a dense checkpoint, a plan, calibration and dev tokens, and what the gradient pass kept (row weights, token weights, the
embedding's moments). Out: one safetensors file per tensor in a directory, written whole or not at all, so that a killed run goes
on at the first tensor that is missing and ends with the same bytes. Where an encoder's result is worse than round to nearest on
the dev inputs, round to nearest is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from optiq.events import QUIET, Events
from optiq.kernels.affine import Coded
from optiq.kernels.memory import trim
from optiq.kernels.quantized import dequantize
from optiq.measure import walk
from optiq.measure.hidden import HiddenStore
from optiq.measure.inputs import InputMoments
from optiq.models.directory import coded_entries
from optiq.models.save import write_safetensors, writing_rows
from optiq.models.stream import Stream
from optiq.models.topology import Tensor
from optiq.plan.size import safetensors_name
from optiq.plan.types import UNQUANTIZED_BITS, Choice
from optiq.quantize.encoders import ENCODERS
from optiq.quantize.encoders.gptq import damped, inverse_factor

# Per batch at least: each batch reads and writes every gram once, which for 256 tokens of a 4B model takes half the time.
GRAM_TOKENS = 2048
SLICE_WEIGHTS = 1 << 24  # weights that are encoded at once: 64 MB in float32


@dataclass(frozen=True)
class Kept:
    """What the gradient pass kept about one tensor.

    Args:
        row: row weights [..., O], or None without a gradient pass.
        weights: token weights [N * L], or None.
        gram: [I, I] for tensors that no block's input determines (embeddings; every tensor of a model in one piece).
    """

    row: np.ndarray | None = None
    weights: np.ndarray | None = None
    gram: np.ndarray | None = None


@dataclass
class Encoding:
    """The encode stage's inputs and where its results go.

    Args:
        choices: bits and group size per tensor name.
        encoder: name in `ENCODERS`; what a tensor ends up with is in `used`.
        calibration, dev: tokens [N, L]; empty arrays where no forward pass is wanted (static plans).
        kept: per tensor, from the gradient pass.
        path: directory of the results.
        options: further arguments of the encoder.
    """

    stream: Stream
    choices: Mapping[str, Choice]
    encoder: str
    dtype: mx.Dtype
    calibration: np.ndarray
    dev: np.ndarray
    kept: Mapping[str, Kept]
    path: Path
    options: Mapping[str, object] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)

    @property
    def needs_inputs(self) -> bool:
        """Whether hidden states have to be walked through the model."""
        return self.encoder != "rtn" and self.calibration.size > 0 and self.stream.depth > 0

    def file(self, tensor: Tensor) -> Path:
        """Where a tensor's codes are stored."""
        return self.path / f"{tensor.name}.safetensors"


def encode(job: Encoding, events: Events = QUIET) -> None:
    """Run the stage, or what is left of it."""
    job.path.mkdir(parents=True, exist_ok=True)
    stream = job.stream
    outer = stream.topology.of_block(None)
    early = [t for t in outer if t.kind == "embedding" or stream.depth == 0]
    late = [t for t in outer if t not in early]
    with events.stage("encode", len(stream.topology.tensors), "tensors") as stage:
        for tensor in early:
            _encode_outer(job, tensor)
            stage.advance(note=tensor.name)
        walks = {name: _Walk(job, name, ids) for name, ids in (("calibration", job.calibration), ("dev", job.dev))}
        for i in range(stream.depth):
            tensors = stream.topology.of_block(i)
            _encode_block(job, i, tensors, walks)
            stage.advance(len(tensors), note=stream.topology.blocks[i])
        _encode_late(job, late, walks)
        stage.advance(len(late))


class _Walk:
    """Hidden states of one token set behind the quantized prefix."""

    def __init__(self, job: Encoding, name: str, ids: np.ndarray):
        self.ids, self.job = ids, job
        self.store = HiddenStore(job.path / f"hidden-{name}")
        if job.needs_inputs and not any(self.store.has(str(i)) for i in range(job.stream.depth + 1)):
            job.stream.load_outer()
            _use_stored(job, job.stream.topology.of_block(None))
            walk.forward_front(job.stream, ids, self.store)
            job.stream.load_outer()

    def grams(self, level: int, tensors: list[Tensor], weights: Mapping[str, np.ndarray]) -> dict[str, mx.array]:
        """Input moments of the tensors that read the hidden states of this level."""
        stream = self.job.stream
        moments = InputMoments(weights)
        undo = stream.wrap(tensors, moments.wrapper())
        length = self.ids.shape[1]
        width = self.store.width(str(level))
        for a, b in walk.batches(self.ids, 3 * width, GRAM_TOKENS):
            moments.batch(a * length, b * length)
            hidden = self.store.rows(str(level), a, b)
            if level < stream.depth:
                stream.block(level, hidden)
            else:
                stream.tail(hidden, mx.array(self.ids[a:b]))
            moments.evaluate()  # the only thing that is evaluated: what the sums do not need is never computed
        undo()
        return moments.grams(tensors)

    def advance(self, level: int) -> None:
        """Push the hidden states through block `level` as it stands now."""
        walk.forward_block(self.job.stream, level, self.ids, self.store)
        self.store.drop(str(level))


def _encode_block(job: Encoding, index: int, tensors: list[Tensor], walks: Mapping[str, _Walk]) -> None:
    todo = [t for t in tensors if not job.file(t).exists()]
    behind = job.needs_inputs and not all(w.store.has(str(index + 1)) for w in walks.values())
    passed = job.needs_inputs and any(w.store.has(str(k)) for w in walks.values() for k in range(index + 2, job.stream.depth + 1))
    if (not todo and not behind) or passed:
        return
    if job.needs_inputs:
        job.stream.load_block(index)
    grams: dict[str, dict[str, mx.array]] = {"calibration": {}, "dev": {}}
    if todo and job.needs_inputs:
        grams["calibration"] = walks["calibration"].grams(index, todo, _token_weights(job, todo))
        grams["dev"] = walks["dev"].grams(index, todo, {})
    for tensor in todo:
        found, dev = (grams[name].get(tensor.name) for name in ("calibration", "dev"))
        _store(job, tensor, found, dev)
    if job.needs_inputs:
        _use_stored(job, tensors)
        for w in walks.values():
            if not w.store.has(str(index + 1)):
                w.advance(index)
    job.stream.release_block(index)


def _encode_outer(job: Encoding, tensor: Tensor) -> None:
    if job.file(tensor).exists():
        return
    kept = job.kept.get(tensor.name, Kept())
    gram = None if kept.gram is None else mx.array(kept.gram)
    _store(job, tensor, gram, None)
    job.stream.load_outer()


def _encode_late(job: Encoding, tensors: list[Tensor], walks: Mapping[str, _Walk]) -> None:
    todo = [t for t in tensors if not job.file(t).exists()]
    if not todo:
        return
    grams: dict[str, dict[str, mx.array]] = {"calibration": {}, "dev": {}}
    if job.needs_inputs:
        grams["calibration"] = walks["calibration"].grams(job.stream.depth, todo, _token_weights(job, todo))
        grams["dev"] = walks["dev"].grams(job.stream.depth, todo, {})
    for tensor in todo:
        found, dev = (grams[name].get(tensor.name) for name in ("calibration", "dev"))
        _store(job, tensor, found, dev)
    job.stream.load_outer()


def _token_weights(job: Encoding, tensors: list[Tensor]) -> dict[str, np.ndarray]:
    return {t.name: k.weights for t in tensors if (k := job.kept.get(t.name)) and k.weights is not None}


def _store(job: Encoding, tensor: Tensor, gram: mx.array | None, dev: mx.array | None) -> None:
    """Encode one tensor, fall back to round to nearest where that is better on dev inputs, write it."""
    choice = job.choices[tensor.name]
    weight = job.stream.checkpoint.weights(native=True)[f"{tensor.name}.weight"]
    if choice.bits == UNQUANTIZED_BITS:
        write_safetensors(job.file(tensor), {"weight": weight.astype(job.dtype)}, {"encoder": "none"})
        return
    judge = dev if dev is not None else gram
    if job.encoder == "rtn" or judge is None:
        _write(job, tensor, weight, job.encoder, gram, judge, job.file(tensor))
    else:
        tried = job.file(tensor).with_suffix(".tried")
        objective = _write(job, tensor, weight, job.encoder, gram, judge, tried)
        if sum(_error(job, tensor, s, judge) for s in _slices(job, tensor, weight, "rtn", None)) < objective:
            _write(job, tensor, weight, "rtn", None, None, job.file(tensor))
            tried.unlink()
        else:
            tried.replace(job.file(tensor))
    del weight
    trim()


@dataclass(frozen=True)
class _Slice:
    """Codes of the entries from `start` on of a tensor's first axis, beside the float32 values that they stand for."""

    start: int
    values: mx.array
    coded: Coded


def _slices(job: Encoding, tensor: Tensor, weight: mx.array, encoder: str, gram: mx.array | None) -> Iterator[_Slice]:
    """A tensor's codes, `SLICE_WEIGHTS` at a time, so that beside a huge tensor there is never much more than itself."""
    choice = job.choices[tensor.name]
    options = {} if encoder != "gptq" else {**job.options, "factor": None if gram is None else inverse_factor(damped(gram))}
    step = max(1, SLICE_WEIGHTS * tensor.shape[0] // prod(tensor.shape))
    for start in range(0, tensor.shape[0], step):
        values = weight[start : start + step].astype(mx.float32)
        yield _Slice(start, values, ENCODERS[encoder](values, choice.bits, choice.group_size, job.dtype, gram, **options))


def _error(job: Encoding, tensor: Tensor, part: _Slice, judge: mx.array) -> float:
    """A slice's error under `judge`, its rows weighted where the gradient pass gave weights."""
    row = job.kept.get(tensor.name, Kept()).row
    error = part.coded.dense() - part.values
    per_row = ((error @ judge) * error).sum(-1)
    return float((per_row if row is None else per_row * mx.array(row[part.start : part.start + len(per_row)])).sum())


def _write(
    job: Encoding, tensor: Tensor, weight: mx.array, encoder: str, gram: mx.array | None, judge: mx.array | None, path: Path
) -> float:
    """Store a tensor's codes slice by slice; returns their error under `judge`, 0 without one."""
    entries = coded_entries("", tensor.shape, job.choices[tensor.name], safetensors_name(str(job.dtype)))
    objective = 0.0
    with writing_rows(path, entries, {"encoder": encoder}) as put:
        for part in _slices(job, tensor, weight, encoder, gram):
            if judge is not None:
                objective += _error(job, tensor, part, judge)
            put("weight", part.coded.words())
            put("scales", part.coded.scales.astype(job.dtype))
            put("biases", part.coded.biases.astype(job.dtype))
            del part  # not beside the next one
    return objective


def stored_dense(job: Encoding, tensor: Tensor) -> mx.array:
    """The float32 values that a stored tensor stands for."""
    stored = mx.load(str(job.file(tensor)))
    choice = job.choices[tensor.name]
    if "scales" not in stored:
        return stored["weight"].astype(mx.float32)
    parts = (stored[key] for key in ("weight", "scales", "biases"))
    return dequantize(*parts, group_size=choice.group_size, bits=choice.bits)


def _use_stored(job: Encoding, tensors: list[Tensor]) -> None:
    for tensor in tensors:
        if job.file(tensor).exists():
            dense = {f"{tensor.name}.weight": stored_dense(job, tensor)}
            if tensor.block is None:
                job.stream.assign_outer(dense)
            else:
                job.stream.assign_block(tensor.block, dense)
