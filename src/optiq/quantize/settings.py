"""What a conversion is asked to do: one frozen object, from which the command line reads its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from optiq.errors import InputError
from optiq.kernels.affine import BITS, GROUP_SIZES
from optiq.measure.sensitivity import METHODS
from optiq.plan.budget import Budget
from optiq.plan.options import Keep
from optiq.plan.types import UNQUANTIZED_BITS
from optiq.quantize.encoders import ENCODERS

REFERENCES = ("auto", "bf16", "uniform_4bit")
ENCODER_NAMES = ENCODERS.names()


@dataclass(frozen=True)
class Settings:
    """One conversion.

    Args:
        model: local directory or hub id.
        output: directory to write.
        budget: what the result may take.
        candidate_bits, group_sizes: what each tensor may be stored with.
        sensitivity: how damage is found out, one of `METHODS`.
        encoder: how codes are made, one of `ENCODER_NAMES`.
        refit: refit scales, biases and codes jointly after error feedback.
        reference: what the model is compared with while it is measured.
        calibration_mix: path of a JSONL file, or None for the packaged mix.
        calibration_samples: rows per domain.
        calibration_length: tokens per row.
        dev_rows, score_rows: rows per domain of the two other sets.
        keep: tensors pinned to a width.
        baselines: also build and measure stock uniform models of the nearest sizes.
        verify: measure the true divergence of the result.
        resume: go on from what an earlier run left in the work directory.
        overwrite: replace an existing output directory.
        measure_only: end with the damage table, written as `sensitivity.json` into the output.
        work: directory for the stages' files; None: beside the output, removed at the end.
    """

    model: str
    output: Path
    budget: Budget = field(default_factory=lambda: Budget("bpw", 5.0))
    candidate_bits: tuple[int, ...] = BITS
    group_sizes: tuple[int, ...] = GROUP_SIZES
    sensitivity: str = "fisher"
    encoder: str = "gptq"
    refit: bool = True
    reference: str = "auto"
    calibration_mix: Path | None = None
    calibration_samples: int = 40
    calibration_length: int = 256
    dev_rows: int = 8
    score_rows: int = 20
    keep: tuple[Keep, ...] = ()
    baselines: bool = False
    verify: bool = True
    resume: bool = True
    overwrite: bool = False
    measure_only: bool = False
    work: Path | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--sensitivity", self.sensitivity, METHODS),
            ("--encoder", self.encoder, ENCODER_NAMES),
            ("--reference", self.reference, REFERENCES),
        ):
            if value not in known:
                raise InputError(f"{name} {value!r} is not one of {', '.join(known)}")
        for name, number in (("samples", self.calibration_samples), ("length", self.calibration_length)):
            if number < 1:
                raise InputError(f"--calibration-{name} {number}: expected a positive number")

    @property
    def measured_bits(self) -> tuple[int, ...]:
        """Every width that some tensor may get: the candidates, and what tensors are pinned to."""
        return tuple(sorted({*self.candidate_bits, *(k.bits for k in self.keep if k.bits != UNQUANTIZED_BITS)}))

    @property
    def needs_text(self) -> bool:
        """Whether any stage runs the model on text."""
        return self.sensitivity != "static" or self.verify or self.encoder == "gptq"
