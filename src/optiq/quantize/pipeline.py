"""`optiq convert`: the stages in order, no maths.

    checkpoint -> text -> statistics -> damage table -> plan -> codes -> measured divergence (-> a second plan) -> directory

Each stage leaves its result in the work directory; starting again after a kill takes up where the files end and gives the same
bytes. Choices look at calibration and dev text only; the score text is measured once, at the end, on what was written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from optiq import files
from optiq.errors import InputError
from optiq.events import QUIET, Events
from optiq.kernels.memory import trim
from optiq.measure import sensitivity
from optiq.measure.statistics import Statistics
from optiq.models import directory
from optiq.models.checkpoint import Checkpoint
from optiq.models.hub import resolve
from optiq.models.places import check_output
from optiq.models.stream import Stream
from optiq.plan.allocate import allocate
from optiq.plan.budget import Budget
from optiq.plan.options import fallback_notes
from optiq.plan.types import Item, Plan
from optiq.quantize import places, request, stages, writing
from optiq.quantize.encode import Encoding
from optiq.quantize.estimate import announce
from optiq.quantize.settings import Settings
from optiq.quantize.stages import Job
from optiq.quantize.workspace import Workspace, text

DISAGREEMENT = 2.0  # predicted and measured KL on dev may differ by this factor before the plan is solved again


@dataclass(frozen=True)
class Converted:
    """A finished conversion: where it is, and the content of its plan.json (of a measurement alone: of its table)."""

    path: Path
    plan: dict[str, Any]


def convert(model: str, output: str | Path, *, target_bpw: float | None = None, **settings: Any) -> Converted:
    """Convert a model; the arguments are those of `Settings`.

    Args:
        model: local directory or hub id.
        output: directory to write.
        target_bpw: budget in bits per weight; or pass `budget=Budget(...)`.
    """
    if target_bpw is not None:
        settings["budget"] = Budget("bpw", target_bpw)
    return run(Settings(model=model, output=Path(output), **settings))


def run(settings: Settings, events: Events = QUIET) -> Converted:
    """Run every stage, or what an earlier run left of them.

    Raises:
        OptiqError: one clear line; what was finished stays in the work directory.
    """
    check_output(settings.output, settings.overwrite)
    source = Checkpoint.open(resolve(settings.model, events=events))
    places.check_source(settings, source.path)
    if source.holds_codes:
        raise InputError(
            f"{settings.model} is quantized already; give the original checkpoint, so that nothing is rounded twice."
        )
    source.check()
    reference, notes = _reference(settings, source, events)
    stream = Stream(reference)
    layout = directory.Layout(source, stream.topology)
    request.check(settings, stream.topology, layout)
    with Workspace.open(settings, source) as space:
        return _run(settings, source, stream, layout, space, notes, events)


def _run(
    settings: Settings,
    source: Checkpoint,
    stream: Stream,
    layout: directory.Layout,
    space: Workspace,
    notes: list[str],
    events: Events,
) -> Converted:
    """The stages, of a request that can be met."""
    _check_values(source, space, events)
    words = text(settings, source, events) if settings.needs_text else None
    job = Job(settings, source, stream.checkpoint, stream, words, space, events)
    announce(job)
    notes += list(words.notes) if words else []

    found = stages.statistics(job) if settings.sensitivity == "fisher" else None
    items = stages.damage_table(job, found)
    if settings.measure_only:
        return Converted(settings.output, writing.write_table(job, items, layout))
    items, kept_notes = request.narrowed(settings, stream.topology, items)
    notes += fallback_notes(items, settings.group_sizes) + kept_notes
    plan = solve(job, items, layout)
    task = stages.encoded(job, plan, stages.kept(job, found))
    receipts: dict[str, Any] = {}
    if settings.verify and words is not None:
        items, plan, task, receipts = _verified(job, layout, items, plan, task, found, notes)
    for note in request.unspent(items, plan):
        events.info(note)
        notes.append(note)
    result = writing.write(job, writing.Result(items, plan, layout, task, receipts, notes))
    return Converted(settings.output, result)


def solve(job: Job, items: list[Item], layout: directory.Layout) -> Plan:
    """The exact plan at the budget."""
    params = sum(item.params for item in items)
    budget = job.settings.budget.quantized_bytes(params, layout.fixed_bytes, layout.header_bytes())
    with job.events.stage("plan"):
        plan = allocate(items, budget)
    trim()  # the solver's memory would otherwise lie under the peak of what follows
    job.events.info(f"plan: {plan.bpw:.3f} bits per weight, {files.size_text(plan.bytes)} of {files.size_text(budget)}")
    return plan


def _verified(
    job: Job,
    layout: directory.Layout,
    items: list[Item],
    plan: Plan,
    task: Encoding,
    found: Statistics | None,
    notes: list[str],
) -> tuple[list[Item], Plan, Encoding, dict[str, Any]]:
    """Measure on dev; where the prediction was off by more than `DISAGREEMENT`, re-linearise and solve once more."""
    assert job.text is not None
    dev = job.text.dev
    folder = task.path

    def on_dev(task: Encoding) -> dict[str, Any]:
        candidate = replace(job.source, transform=stages.transform(task))
        return stages.measured(job, task, candidate, dev)

    first = on_dev(task)
    receipts = {"predicted_dev": plan.damage, "measured_dev": first["mean"]}
    ratio = first["mean"] / max(plan.damage, 1e-12)
    if job.settings.sensitivity != "fisher" or 1 / DISAGREEMENT <= ratio <= DISAGREEMENT:
        return items, plan, task, receipts
    job.events.warn(
        f"measured KL on dev is {ratio:.2f}x the prediction: measuring again at the quantized model, solving once more"
    )
    again = stages.statistics(job, stages.transform(task), "relinearised", encoded=folder.name)
    second_items = sensitivity.fisher(job.stream, again, job.candidates(), job.events)
    second_items, _ = request.narrowed(job.settings, job.topology, second_items)
    second = solve(job, second_items, layout)
    second_task = stages.encoded(job, second, stages.kept(job, found))
    result = on_dev(second_task)
    better = result["mean"] < first["mean"]
    notes.append(
        f"prediction and measurement on dev differed {ratio:.2f}x; the second plan measured {result['mean']:.5f} nats "
        f"against {first['mean']:.5f} and was {'taken' if better else 'dropped'}"
    )
    if not better:
        return items, plan, task, receipts
    return second_items, second, second_task, {"predicted_dev": second.damage, "measured_dev": result["mean"]}


def _reference(settings: Settings, source: Checkpoint, events: Events) -> tuple[Checkpoint, list[str]]:
    """The model that damage is measured against, and what to say about it.

    bf16 is streamed block by block, so `auto` resolves to it; a simulated uniform 4-bit model is used when asked for.
    """
    if settings.reference != "uniform_4bit":
        return source, []
    names = {f"{tensor.name}.weight" for tensor in Stream(source).topology.tensors}

    def coarse(name: str, value: mx.array) -> mx.array:
        if name not in names or value.shape[-1] % 64:
            return value
        return mx.dequantize(*mx.quantize(value, 64, 4), 64, 4)

    note = "sensitivity and divergence were measured against a uniform 4-bit model, as asked, not against the bf16 model"
    events.warn(note)
    return replace(source, transform=coarse), [note]


def _check_values(source: Checkpoint, space: Workspace, events: Events) -> None:
    """Refuse weights that are not finite, by name, before any long work; once per model."""
    done = space.stage("checked") / "finite.json"
    if not done.exists():
        with events.stage("check weights"):
            source.check_finite()
        files.write_json(done, {"schema": 1})
