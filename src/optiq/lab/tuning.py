"""Fine-tuning as the workbench sees it: the form as commands, data sets and adapters on this disk, the losses of a run.

Form -> optiq lora check | train; OUT/train.jsonl -> Losses; adapters/*/adapter_config.json -> Adapter
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optiq import files
from optiq.errors import OptiqError
from optiq.lab.place import Place, slug
from optiq.lab.text import line
from optiq.lab.words import given

TRAIN, MERGE, FUSE = "train", "merge", "fuse"  # what a job's facts call it
CONFIG = "adapter_config.json"
SHOWN_EXAMPLES = 3
PRESETS = ("small", "default", "medium", "large", "xl", "xxl", "reference")
METHODS = {"sft": "replies (sft)", "dpo": "preferences (dpo)"}
SCALINGS = {"": "by bits", "constant": "constant", "by_sensitivity": "by sensitivity"}


@dataclass
class Form:
    """The flags of `optiq lora train` that the form has; an empty text leaves the command's own default."""

    model: str = ""
    data: str = ""
    method: str = "sft"
    name: str = ""
    preset: str = "default"
    rank: str = ""
    iters: str = ""
    epochs: str = ""
    lr: str = ""
    batch: str = ""
    length: str = ""
    mask_prompt: bool = True
    rank_scaling: str = ""
    targets: str = ""
    layers: str = ""
    accumulation: str = ""
    dropout: str = ""
    patience: str = ""
    eval_every: str = ""
    save_every: str = ""
    seed: str = ""
    dora: bool = False
    rslora: bool = False

    def missing(self) -> str:
        """What has to be chosen yet; empty where nothing is."""
        return "choose a model first" if not self.model else "choose data first" if not self.data else ""

    def _common(self) -> list[str]:
        """What the check and the training share: all that decides which tokens are read."""
        found = [self.model or "MODEL", "--data", self.data or "DATA"]
        found += ["--method", self.method] if self.method != "sft" else []
        found += given(("--max-seq-length", self.length))
        return found + ([] if self.mask_prompt else ["--no-mask-prompt"])

    def check_words(self) -> list[str]:
        """The command that reads the data."""
        return ["lora", "check", *self._common(), "--show", str(SHOWN_EXAMPLES)]

    @property
    def output_name(self) -> str:
        """What the adapter's directory is called, where nothing else is."""
        return slug(self.name.strip() or "-".join(filter(None, (Path(self.model).name, Path(self.data).stem))))

    def train_words(self, output: Path) -> list[str]:
        """The command that trains."""
        found = ["lora", "train", *self._common()]
        found += ["--preset", self.preset] if self.preset not in ("", "default") else []
        found += given(
            ("--rank", self.rank),
            ("--iters", self.iters),
            ("--num-epochs", "" if self.iters.strip() else self.epochs),
            ("--lr", self.lr),
            ("--batch-size", self.batch),
            ("--rank-scaling", self.rank_scaling),
            ("--target-modules", self.targets),
            ("--num-layers", self.layers),
            ("--grad-accumulation-steps", self.accumulation),
            ("--dropout", self.dropout),
            ("--early-stopping-patience", self.patience),
            ("--steps-per-eval", self.eval_every),
            ("--steps-per-save", self.save_every),
            ("--seed", self.seed),
        )
        found += ["--use-dora"] if self.dora else []
        found += ["--use-rslora"] if self.rslora else []
        return [*found, "-o", str(output)]


@dataclass(frozen=True)
class Adapter:
    """An adapter on this disk; ``steps`` and ``valid`` (nats per token) are None where training did not say."""

    path: Path
    base: str
    method: str
    rank: int | None
    steps: int | None
    valid: float | None

    @property
    def title(self) -> str:
        """Its directory's name."""
        return line(self.path.name, 80)


def adapter_folders(place: Place) -> list[Path]:
    """Where adapters of the workbench are, by name; nothing is read."""
    return sorted(file.parent for file in place.folder("adapters").glob(f"*/{CONFIG}"))


def adapters(place: Place) -> list[Adapter]:
    """The adapters of the workbench, the newest first; what cannot be read is left out."""
    found = sorted(adapter_folders(place), key=lambda folder: -(folder / CONFIG).stat().st_mtime)
    return [adapter for folder in found if (adapter := _adapter(folder)) is not None]


def _adapter(folder: Path) -> Adapter | None:
    try:
        config = files.read_json(folder / CONFIG, what="adapter's config", schema=None)
        told = config.get("optiq") or {}
        rank, steps, valid = config.get("r"), told.get("steps"), told.get("valid_loss")
        return Adapter(
            folder,
            str(config.get("base_model_name_or_path") or ""),
            str(told.get("method") or ("merged" if "merged" in told else "")),
            rank if isinstance(rank, int) else None,
            steps if isinstance(steps, int) else None,
            valid if isinstance(valid, int | float) else None,
        )
    except (OptiqError, AttributeError):
        return None


def data_sets(place: Place) -> dict[str, str]:
    """Training data that were put into the workbench: path by path, with names for people."""
    folder = place.folder("data")
    found = [*folder.glob("*.jsonl"), *(file.parent for file in folder.glob("*/train.jsonl"))]
    return {str(path): line(path.name, 80) for path in sorted(found)}


@dataclass(frozen=True)
class Losses:
    """Points (step, nats per token) of a run."""

    training: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)


def losses(output: Path, notes: Iterable[tuple[str, int, str]] = ()) -> Losses:
    """The losses of a run, also while it runs.

    Args:
        output: its directory; its log is read.
        notes: of its job, (stage, step, "loss 1.234"): every step, where the log has every tenth.
    """
    training: dict[int, float] = {}
    validation: dict[int, float] = {}
    for stage, step, note in notes:
        if stage == "train" and (value := _number(note.removeprefix("loss "))) is not None:
            training[step] = value
    for row in _rows(output / "train.jsonl"):
        for key, points in (("loss", training), ("valid", validation)):
            if isinstance(row.get(key), int | float):
                points[int(row["step"])] = float(row[key])
    return Losses(sorted(training.items()), sorted(validation.items()))


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []  # not begun; the file is replaced in one step, so it is never half there
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def merge_words(chosen: list[Adapter], scales: str, output: Path) -> list[str]:
    """The command that adds adapters of one model up."""
    found = ["lora", "merge", *[str(one.path) for one in chosen], "--model", chosen[0].base if chosen else "MODEL"]
    return [*found, *(["--scales", scales.replace(" ", "")] if scales.strip() else []), "-o", str(output)]


def fuse_words(adapter: Adapter, output: Path) -> list[str]:
    """The command that makes a model which needs no adapter."""
    return ["lora", "fuse", adapter.base, "--adapter", str(adapter.path), "-o", str(output)]
