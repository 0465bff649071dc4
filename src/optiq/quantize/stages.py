"""The stages of a conversion, each from files to files: table, plan, encode, measure. The order is
`optiq.quantize.pipeline`'s."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from optiq import files
from optiq.events import Events
from optiq.kernels.affine import Coded
from optiq.measure import sensitivity
from optiq.measure.damage import combined
from optiq.measure.divergence import Divergence, divergence
from optiq.measure.statistics import Statistics, gather
from optiq.measure.tokens import Tokens
from optiq.models.checkpoint import Checkpoint, Transform
from optiq.models.stream import Stream
from optiq.models.topology import Tensor, Topology
from optiq.plan import table
from optiq.plan.types import Item, Plan
from optiq.quantize.encode import Encoding, Kept, encode, stored_dense
from optiq.quantize.encoders import ENCODERS
from optiq.quantize.settings import Settings
from optiq.quantize.workspace import Text, Workspace


@dataclass
class Job:
    """What every stage of one conversion shares.

    Args:
        source: the checkpoint as it is.
        reference: the checkpoint that is measured against (the source, or a simulated uniform 4-bit model).
        text: token sets; None where no stage runs the model.
    """

    settings: Settings
    source: Checkpoint
    reference: Checkpoint
    stream: Stream
    text: Text | None
    space: Workspace
    events: Events

    @property
    def topology(self) -> Topology:
        """The model's parts."""
        return self.stream.topology

    def candidates(self) -> sensitivity.Candidates:
        """Options of the sensitivity table, with the form of the codes that predictions are made with."""
        s = self.settings
        name = "rtn" if s.encoder == "rtn" else "search"
        dtype = self.source.dtype

        def encode_as(weight: mx.array, bits: int, group_size: int, gram: mx.array | None) -> Coded:
            coded: Coded = ENCODERS[name](weight, bits, group_size, dtype, gram)
            return coded

        return sensitivity.Candidates(s.measured_bits, s.group_sizes, encode_as, s.encoder == "gptq")

    def key(self) -> dict[str, Any]:
        """What measured statistics depend on, beside the model."""
        tokens = self.text.calibration.sha256 if self.text else None
        return {"tokens": tokens, "reference": self.reference is not self.source}


def statistics(job: Job, transform: Transform | None = None, label: str = "statistics", **depends: Any) -> Statistics:
    """The gradient pass at the reference, or at a transformed model (re-linearisation)."""
    assert job.text is not None
    stream = job.stream if transform is None else Stream(replace(job.source, transform=transform))
    return gather(stream, job.text.calibration.ids, job.space.stage(label, **job.key(), **depends), job.events)


def damage_table(job: Job, found: Statistics | None) -> list[Item]:
    """The sensitivity table of the chosen method, from the work directory where it is there already."""
    s, candidates = job.settings, job.candidates()
    key = {"method": s.sensitivity, "bits": candidates.bits, "groups": s.group_sizes, "encoder": s.encoder}
    folder = job.space.stage("sensitivity", **job.key(), **key)
    file = folder / "sensitivity.json"
    if file.exists():
        return list(table.load(file).items)
    if s.sensitivity == "static":
        items = sensitivity.static(job.stream, candidates, job.events)
    elif s.sensitivity == "kl":
        assert job.text is not None
        items = sensitivity.measured(job.stream, job.text.calibration.ids, candidates, folder, job.events)
    else:
        assert found is not None
        items = sensitivity.fisher(job.stream, found, candidates, job.events)
    table.save(file, items, {"method": s.sensitivity})
    return items


def kept(job: Job, found: Statistics | None) -> dict[str, Kept]:
    """What the encoder uses of the gradient pass; nothing where there was none."""
    if found is None:
        return {}
    result = {}
    for tensor in job.topology.tensors:
        uses = found.uses(tensor)
        if not uses:
            continue
        gram = np.array(combined(uses)) if tensor.block is None else None
        rows = np.array(sum((m.row for m in uses[1:]), uses[0].row))
        result[tensor.name] = Kept(rows, found.token_weights(tensor), gram)
    return result


def encoded(job: Job, plan: Plan, keep: dict[str, Kept]) -> Encoding:
    """Encode the plan block by block into the work directory."""
    s = job.settings
    chosen = [[c.name, c.bits, c.group_size] for c in plan.choices]
    use_text = job.text is not None and s.encoder == "gptq" or (s.encoder == "search" and s.sensitivity != "static")
    key = {"plan": chosen, "encoder": s.encoder, "refit": s.refit, "kept": sorted(keep), "method": s.sensitivity}
    key["dev"] = job.text.dev.sha256 if job.text else None
    empty = np.zeros((0, 0), np.int32)
    task = Encoding(
        stream=job.stream if job.reference is job.source else Stream(job.source),
        choices={c.name: c for c in plan.choices},
        encoder=s.encoder,
        dtype=job.source.dtype,
        calibration=job.text.calibration.ids if use_text and job.text else empty,
        dev=job.text.dev.ids if use_text and job.text else empty,
        kept=keep,
        path=job.space.stage("encode", **job.key(), **key),
        options={"joint": s.refit},
    )
    encode(task, job.events)
    return task


def encoders_used(task: Encoding) -> dict[str, str]:
    """The encoder that each tensor ended up with, from the files' own metadata."""
    from optiq.models.shards import read_metadata

    return {t.name: read_metadata(task.file(t))["encoder"] for t in task.stream.topology.tensors}


def transform(task: Encoding) -> Transform:
    """The encoded values in place of the dense ones, read when they are needed."""
    tensors: dict[str, Tensor] = {f"{t.name}.weight": t for t in task.stream.topology.tensors}
    return lambda name, value: stored_dense(task, tensors[name]) if name in tensors else value


def measure(job: Job, candidate: Checkpoint | Path, tokens: Tokens) -> Divergence:
    """The true divergence of a candidate from the reference on one token set."""
    folder = job.space.stage("reference", **job.key())
    return divergence(job.stream, candidate, tokens, job.events, folder)


def measured(job: Job, task: Encoding, candidate: Checkpoint | Path, tokens: Tokens) -> dict[str, Any]:
    """The summary of `measure` for an encoded plan, kept beside its codes under the name of the token set."""
    path = task.path / f"{tokens.set_name}-{tokens.sha256[:16]}.json"
    if not path.exists():
        files.write_json(path, {"schema": 1, **measure(job, candidate, tokens).summary()})
    return files.read_json(path, "stage result")
