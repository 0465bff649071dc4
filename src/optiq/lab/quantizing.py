"""What the screen Quantize knows of a model: where its measured table and its curve are, and which commands make what.

measure -> measured/<key>/sensitivity.json -> optiq plan --curve -> measured/<key>.curve.json -> convert at a budget -> models/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optiq.lab.jobs.job import Job, State
from optiq.lab.jobs.queue import Queue
from optiq.lab.place import Place, key_of, slug

MEASURE, CONVERT = "measure", "convert"  # what a job's facts call it


@dataclass
class Choices:
    """What both commands share; the defaults are theirs."""

    candidate_bits: str = "2,3,4,5,6,8"
    group_sizes: str = "32,64,128"
    sensitivity: str = "fisher"
    encoder: str = "gptq"
    samples: int = 40

    def words(self) -> list[str]:
        """As flags, those that are not the defaults."""
        flags = (
            ("--candidate-bits", self.candidate_bits.replace(" ", ""), Choices.candidate_bits),
            ("--group-sizes", self.group_sizes.replace(" ", ""), Choices.group_sizes),
            ("--sensitivity", self.sensitivity, Choices.sensitivity),
            ("--encoder", self.encoder, Choices.encoder),
            ("--calibration-samples", str(self.samples), str(Choices.samples)),
        )
        return [word for flag, value, usual in flags if value != usual for word in (flag, value)]


@dataclass(frozen=True)
class Study:
    """One model under quantization.

    Args:
        model: path or hub id, as commands are given it.
        key: a name of files that belong to it alone.
    """

    place: Place
    model: str
    key: str

    @classmethod
    def of(cls, place: Place, model: str) -> Study:
        """The study of a model."""
        return cls(place, model, key_of(model))

    @property
    def folder(self) -> Path:
        """Where `convert --measure-only` writes."""
        return self.place.folder("measured") / self.key

    @property
    def table(self) -> Path:
        """The damage table."""
        return self.folder / "sensitivity.json"

    @property
    def curve(self) -> Path:
        """The Pareto curve, made from the table."""
        return self.place.folder("measured") / f"{self.key}.curve.json"

    @property
    def work(self) -> Path:
        """The stages' files, which measuring and all conversions share."""
        return self.place.folder("work") / self.key

    def measure_words(self, choices: Choices) -> list[str]:
        """The command that measures the table."""
        again = ["--overwrite"] if self.table.exists() else []
        place = ["-o", str(self.folder), "--work", str(self.work)]
        return ["convert", self.model, "--measure-only", *choices.words(), *place, *again]

    def curve_words(self) -> list[str]:
        """The command that makes the curve."""
        return ["plan", str(self.table), "--curve", str(self.curve)]

    def output_name(self, bpw: float) -> str:
        """What a model of this budget is called, where nothing else is."""
        return f"{slug(Path(self.model).name)}-{bpw:.2f}bpw"

    def convert_words(self, choices: Choices, bpw: float, output: Path) -> list[str]:
        """The command that makes the model."""
        return [
            "convert",
            self.model,
            "--target-bpw",
            f"{bpw:.3f}",
            *choices.words(),
            "-o",
            str(output),
            "--work",
            str(self.work),
        ]

    def jobs(self, queue: Queue, what: str) -> list[Job]:
        """Its jobs of one kind, the newest first."""
        return [job for job in queue.store.all() if job.facts.get("model") == self.model and job.facts.get("what") == what]

    @property
    def curve_is_current(self) -> bool:
        """Whether the curve was made after the table."""
        return self.curve.exists() and self.curve.stat().st_mtime >= self.table.stat().st_mtime


@dataclass(frozen=True)
class Outcome:
    """A finished conversion beside its prediction; KL in nats per token, None where it was not measured."""

    output: str
    bpw: float
    bytes: int
    predicted: float | None
    measured: float | None
    interval: tuple[float, float] | None


def outcomes(study: Study, queue: Queue) -> list[Outcome]:
    """What conversions of this model came to, the newest first."""
    done = [job for job in study.jobs(queue, CONVERT) if job.state is State.DONE]
    return [_outcome(result) for job in done if (result := queue.log(job.id).result)]


def _outcome(result: Mapping[str, Any]) -> Outcome:
    measured = result.get("measured") or {}
    low_high = measured.get("ci95")
    return Outcome(
        output=str(result["output"]),
        bpw=float(result["bpw"]),
        bytes=int(result["bytes"]["total_files"]),
        predicted=result.get("predicted_kl"),
        measured=measured.get("mean"),
        interval=(low_high[0], low_high[1]) if low_high else None,
    )
