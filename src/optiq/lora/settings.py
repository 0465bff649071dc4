"""What a training run is asked for, and the presets. Knows no model; what cannot be is refused before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optiq.errors import InputError
from optiq.lora.data import TURNS
from optiq.lora.targets import ALL

METHODS = ("sft", "dpo")
DPO_LOSSES = ("sigmoid", "ipo")
SCHEDULES = ("cosine", "constant")
MAX_SEED = (1 << 63) - 1  # what MLX and NumPy both take
INITS = ("random", "quantization-error")
# Rank and alpha / rank. `reference` is the recipe of the reference product's published table.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"rank": 8, "scale": 2.0},
    "default": {"rank": 8, "scale": 1.0},
    "medium": {"rank": 16, "scale": 1.0},
    "large": {"rank": 32, "scale": 1.0},
    "xl": {"rank": 64, "scale": 1.0},
    "xxl": {"rank": 128, "scale": 1.0},
    "reference": {
        "rank": 8,
        "scale": 1.0,
        "num_layers": 16,
        "rank_scaling": "by_bits",
        "target_modules": ("q_proj", "v_proj"),
    },
}
# Not part of what decides the result, so that a resumed run may differ in them.
_FREE = ("model", "data", "valid", "output", "overwrite", "report_every", "save_every")


@dataclass(frozen=True)
class Settings:
    """A training run.

    Args:
        model: directory or hub id.
        data: file or directory, see `optiq.lora.records.find`.
        output: directory to write.
        valid: file to validate on; None: the directory's.
        method: one of `METHODS`.
        rank: r.
        scale: s, alpha over rank.
        rank_scaling: see `optiq.lora.ranks`.
        param_budget: parameters of all adapters; None: what the ranks take.
        rslora: s sqrt(r) instead of s at rank r, as PEFT's `use_rslora` with alpha = s r.
        dora: trained magnitudes.
        init: one of `INITS`; see `optiq.lora.initial`.
        base: the model before quantization, directory or hub id; for `init`.
        dropout: share of adapter inputs that become zero.
        target_modules: see `optiq.lora.targets.find`.
        num_layers: blocks from the end; -1: all.
        iters: optimizer steps; None: as many as `epochs` take.
        epochs: passes over the data; None: 3, and 1 for dpo.
        lr: highest learning rate; None: 2e-4, and 5e-5 for dpo.
        schedule: one of `SCHEDULES`; cosine ends at a tenth.
        warmup: steps; None: a tenth of all, between 2 and 100.
        weight_decay: of AdamW.
        clip: largest norm of the gradient; 0: none.
        batch_size: samples of a batch (packed: times `max_length` tokens).
        accumulation: batches of a step.
        max_length: tokens of a sample.
        packing: samples side by side.
        recompute: gradient checkpointing.
        val_batches: of a validation; -1: all.
        report_every: steps between lines of the log.
        eval_every: steps between validations.
        save_every: steps between states to resume from.
        patience: validations without progress that end the run; 0: none do.
        min_delta: what counts as progress, in nats.
        mask_prompt: prompts carry no loss.
        all_turns: see `optiq.lora.data`.
        dpo_beta: strength.
        dpo_loss: one of `DPO_LOSSES`.
        label_smoothing: share of pairs taken to be the wrong way round.
        seed: of everything random.
        overwrite: replace an adapter that is there.
    """

    model: str
    data: str
    output: Path
    valid: str | None = None
    method: str = "sft"
    rank: int = 8
    scale: float = 1.0
    rank_scaling: str = "by_bits"
    param_budget: int | None = None
    rslora: bool = False
    dora: bool = False
    init: str = "random"
    base: str | None = None
    dropout: float = 0.0
    target_modules: tuple[str, ...] = (ALL,)
    num_layers: int = -1
    iters: int | None = None
    epochs: int | None = None
    lr: float | None = None
    schedule: str = "cosine"
    warmup: int | None = None
    weight_decay: float = 0.01
    clip: float = 1.0
    batch_size: int = 1
    accumulation: int = 1
    max_length: int = 512
    packing: bool = True
    recompute: bool = True
    val_batches: int = 25
    report_every: int = 10
    eval_every: int = 200
    save_every: int = 100
    patience: int = 0
    min_delta: float = 0.0
    mask_prompt: bool = True
    all_turns: str = "auto"
    dpo_beta: float = 0.1
    dpo_loss: str = "sigmoid"
    label_smoothing: float = 0.0
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        named = {"method": METHODS, "dpo_loss": DPO_LOSSES, "schedule": SCHEDULES, "all_turns": TURNS, "init": INITS}
        for key, known in named.items():
            if getattr(self, key) not in known:
                raise InputError(f"{_flag(key)} {getattr(self, key)!r}: expected one of {', '.join(known)}")
        if (self.init == "quantization-error") != (self.base is not None):
            raise InputError("--init quantization-error and --base MODEL, the model before quantization, go together; give both")
        whole = ("rank", "batch_size", "accumulation", "report_every", "eval_every", "save_every")
        for key in whole + tuple(key for key in ("iters", "epochs") if getattr(self, key) is not None):
            if getattr(self, key) < 1:
                raise InputError(f"{_flag(key)} {getattr(self, key)}: expected at least 1")
        if not self.target_modules:
            raise InputError("--target-modules names none, expected ends of layers' paths, or all")
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"--seed {self.seed}: expected a whole number from 0 to {MAX_SEED}")
        for key in ("weight_decay", "clip", "warmup", "patience", "min_delta"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{_flag(key)} {value}: expected at least 0")
        if self.max_length < 2:
            raise InputError(f"--max-seq-length {self.max_length}: expected at least 2")
        for key, low, high in (("dropout", 0, 1), ("label_smoothing", 0, 0.5)):
            if not low <= getattr(self, key) < high:
                raise InputError(f"{_flag(key)} {getattr(self, key)}: expected at least {low} and below {high}")
        for key in ("scale", "lr", "dpo_beta"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{_flag(key)} {value}: expected a number above 0")

    def key(self) -> dict[str, Any]:
        """What decides the result, beside the contents of model and data."""
        return {key: value for key, value in asdict(self).items() if key not in _FREE}

    def scale_of(self, rank: int) -> float:
        """s of a layer."""
        return self.scale * math.sqrt(rank) if self.rslora else self.scale

    def with_steps(self, per_epoch: int) -> Settings:
        """The same with everything that was left open decided.

        Args:
            per_epoch: optimizer steps of a pass over the data.
        """
        dpo = self.method == "dpo"
        epochs = self.epochs or (1 if dpo else 3)
        iters = self.iters or epochs * per_epoch
        warmup = min(max(2, iters // 10), 100) if self.warmup is None else self.warmup
        return replace(self, iters=iters, warmup=warmup, lr=self.lr or (5e-5 if dpo else 2e-4))

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, from 0; `with_steps` has been called.

        Warm-up is linear; then lr (0.1 + 0.9 (1 + cos(pi t)) / 2), t from 0 to 1.
        """
        assert self.lr is not None and self.warmup is not None and self.iters is not None
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        share = (step - self.warmup) / max(1, self.iters - self.warmup)
        return self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


_FLAGS = {
    "max_length": "--max-seq-length",
    "accumulation": "--grad-accumulation-steps",
    "label_smoothing": "--dpo-label-smoothing",
    "report_every": "--steps-per-report",
    "eval_every": "--steps-per-eval",
    "save_every": "--steps-per-save",
    "epochs": "--num-epochs",
    "warmup": "--warmup-iters",
    "patience": "--early-stopping-patience",
    "min_delta": "--early-stopping-min-delta",
}


def _flag(key: str) -> str:
    return _FLAGS.get(key, "--" + key.replace("_", "-"))
