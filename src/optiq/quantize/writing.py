"""The result of a conversion: directory, receipts, card; measured as it was written; visible when it is complete."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from optiq import __version__, files
from optiq.kernels.affine import Coded
from optiq.models import directory, mtp
from optiq.models.stock import mlx_lm_version
from optiq.plan import table
from optiq.plan.types import UNQUANTIZED_BITS, Item, Plan
from optiq.quantize import baselines, stages
from optiq.quantize.card import card
from optiq.quantize.encode import Encoding
from optiq.quantize.encoders import ENCODERS
from optiq.quantize.stages import Job


@dataclass(frozen=True)
class Result:
    """Everything that is written or said of a conversion."""

    items: list[Item]
    plan: Plan
    layout: directory.Layout
    task: Encoding
    receipts: dict[str, Any]
    notes: list[str]


def write(job: Job, result: Result) -> dict[str, Any]:
    """Write the directory in one visible step; returns the content of plan.json."""
    settings, source = job.settings, job.source
    with files.building(settings.output, settings.overwrite) as out:
        with job.events.stage("write"):
            directory.copy_side_files(source.path, out)
            extra = mtp.write(source, out, _mtp_encoder(job))
            config = directory.config(source, job.topology, result.task.choices, extra)
            files.write_json(out / "config.json", config, indent=4)
            total = result.layout.write(out, result.task.choices, _fetch(result.task))
        plan = _plan_json(job, result, total, out)
        if settings.verify and job.text is not None:
            plan["measured"] = _measured(job, result, out)
        if settings.baselines and job.text is not None:
            plan["baselines"] = baselines.compare(job, result.plan.bpw)
        metadata = _metadata(job, result, extra)
        (out / "optiq").mkdir()
        unquantized = [c.name for c in result.plan.choices if c.bits == UNQUANTIZED_BITS]
        facts = _table_facts(job, result.layout, unquantized)
        table.save(out / "optiq" / "sensitivity.json", result.items, facts)
        files.write_json(out / "optiq" / "plan.json", plan)
        files.write_json(out / "optiq" / "metadata.json", metadata)
        files.write_text(out / "README.md", card(plan, metadata, config, directory.licence(source.path)))
    return plan


def _fetch(task: Encoding) -> directory.Fetch:
    """Stored tensors by their name in the model file; the file of the newest tensor stays open."""
    opened: dict[str, dict[str, mx.array]] = {}

    def fetch(name: str) -> mx.array:
        path, _, leaf = name.rpartition(".")
        if path not in opened:
            opened.clear()
            loaded = mx.load(str(task.path / f"{path}.safetensors"))
            assert isinstance(loaded, dict)
            opened[path] = loaded
        return opened[path].pop(leaf)

    return fetch


def _mtp_encoder(job: Job) -> mtp.Encode:
    name = "rtn" if job.settings.encoder == "rtn" else "search"

    def encode(weight: mx.array, bits: int, group_size: int, dtype: mx.Dtype) -> Coded:
        coded: Coded = ENCODERS[name](weight, bits, group_size, dtype)
        return coded

    return encode


def _measured(job: Job, result: Result, out: Path) -> dict[str, Any]:
    """KL on the score set, of the directory as it was written."""
    assert job.text is not None
    score = job.text.score
    figures = stages.measured(job, result.task, out, score)
    figures.pop("schema", None)
    named = "uniform_4bit" if job.reference is not job.source else "bf16"
    return {"set": "score", "reference": named, **figures, **result.receipts}


def _plan_json(job: Job, result: Result, total: int, out: Path) -> dict[str, Any]:
    plan, budget = result.plan, job.settings.budget
    blocks = {t.name: t.block for t in job.topology.tensors}
    used = stages.encoders_used(result.task)
    extra = {name: {"encoder": used[name], "block": blocks[name]} for name in used}
    fallen = sum(1 for name in used.values() if name == "rtn") if job.settings.encoder != "rtn" else 0
    notes = list(result.notes)
    if fallen:
        notes.append(
            f"{fallen} of {len(used)} tensors keep round-to-nearest codes: {job.settings.encoder} was worse on dev inputs"
        )
    if vision := directory.left_out(job.source)["vision"]:
        notes.append(f"{vision} tensors of the vision tower are left out: the result reads and writes text only")
    for note in notes[len(result.notes) :]:
        job.events.info(note)
    side = {file.name: file.stat().st_size for file in sorted(out.glob("*.safetensors")) if not file.name.startswith("model")}
    return {
        "schema": 1,
        "base_model": job.source.name,
        "budget": {"kind": budget.kind, "value": budget.value, "bytes": plan.budget_bytes},
        "bytes": {
            "quantized": plan.bytes,
            "fixed": result.layout.fixed_bytes,
            "header": total - plan.bytes - result.layout.fixed_bytes,
            "total_files": total,
            "side": side,
        },
        "bpw": plan.bpw,
        "params": plan.params,
        "predicted_kl": plan.damage if job.settings.sensitivity != "static" else None,
        "choices": table.choices_json(plan, result.items, extra),
        "measured": None,
        "baselines": [],
        "notes": notes,
    }


def _metadata(job: Job, result: Result, extra: dict[str, Any]) -> dict[str, Any]:
    """optiq/metadata.json: the reference product's keys, and ours after them."""
    s, choices = job.settings, result.plan.choices
    widths = Counter(c.bits for c in choices)
    common = max(widths, key=lambda bits: (widths[bits], -bits))
    calibration = job.text.calibration if job.text else None
    return {
        "schema": 1,
        "method": "static_mixed_precision" if s.sensitivity == "static" else "optiq_mixed_precision",
        "base_model": job.source.name,
        "reference": _reference_name(job),
        "target_bpw": s.budget.value if s.budget.kind == "bpw" else None,
        "achieved_bpw": result.plan.bpw,
        "n_high_bits": sum(1 for c in choices if c.bits > common),
        "n_low_bits": sum(1 for c in choices if c.bits <= common),
        "threshold": 0.0,
        "per_layer": {c.name: {"bits": c.bits, "group_size": c.group_size} for c in choices},
        "name": s.output.absolute().name,
        "sensitivity": s.sensitivity,
        "encoder": s.encoder,
        "calibration": {
            "mix": str(s.calibration_mix.name) if s.calibration_mix else "packaged",
            "domains": sorted(set(calibration.domains)),
            "samples": len(calibration.ids),
            "length": int(calibration.ids.shape[1]),
            "tokens": int(calibration.ids.size),
            "sha256": calibration.sha256,
        }
        if calibration
        else None,
        "left_out": directory.left_out(job.source),
        "mtp": {"bits": mtp.BITS, "group_size": mtp.GROUP_SIZE} if extra else None,
        "versions": {"optiq": __version__, "mlx": mx.__version__, "mlx_lm": mlx_lm_version()},
    }


def _reference_name(job: Job) -> str:
    if job.settings.sensitivity == "static":
        return "structural_rules"
    return "uniform_4bit" if job.reference is not job.source else "bf16"


def write_table(job: Job, items: list[Item], layout: directory.Layout) -> dict[str, Any]:
    """Write the damage table alone, for `optiq plan`; what is left to say of it."""
    out = job.settings.output
    with job.events.stage("write"), files.building(out, overwrite=job.settings.overwrite) as folder:
        table.save(folder / "sensitivity.json", items, _table_facts(job, layout, []))
    return {
        "base_model": job.source.name,
        "sensitivity": str(out / "sensitivity.json"),
        "tensors": len(items),
        "params": sum(item.params for item in items),
    }


def _table_facts(job: Job, layout: directory.Layout, unquantized: list[str]) -> dict[str, Any]:
    s = job.settings
    tokens = job.text.calibration if job.text else None
    return {
        "base_model": job.source.name,
        "method": s.sensitivity,
        "metric": "relative_score" if s.sensitivity == "static" else "kl_nats_per_token",
        "encoder": s.encoder,
        "candidate_bits": list(s.candidate_bits),
        "group_sizes": list(s.group_sizes),
        "group_size": 64 if 64 in s.group_sizes else s.group_sizes[0],
        "tokens": {"sha256": tokens.sha256, "n": len(tokens.ids), "length": int(tokens.ids.shape[1])} if tokens else None,
        "fixed_bytes": layout.fixed_bytes,
        "header_bytes": layout.header_bytes(),
        "unquantized": unquantized,
    }
