"""The data of a run: samples to train and to validate on, in units that stay together, and their facts.

Data in: settings and a tokenizer. Data out: `Corpus`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optiq.errors import InputError
from optiq.files import sha256_file, user_path
from optiq.lora import records
from optiq.lora.data import Encoder, Sample
from optiq.lora.settings import Settings
from optiq.models.chat import ChatTokenizer

Unit = tuple[Sample, ...]  # one sample, or chosen and rejected


@dataclass(frozen=True)
class Part:
    """The samples of one file.

    Args:
        file: where they stand.
        kinds: records by kind.
        units: in the order of the file.
        dropped: records that gave no sample with loss, by their place.
    """

    file: Path
    kinds: dict[str, int]
    units: tuple[Unit, ...]
    dropped: tuple[str, ...]

    @property
    def samples(self) -> list[Sample]:
        """All of them, in order."""
        return [sample for unit in self.units for sample in unit]

    def facts(self) -> dict[str, Any]:
        """Counts and lengths."""
        lengths = sorted(len(sample.tokens) + sample.cut for sample in self.samples)
        return {
            "file": str(self.file),
            "records": sum(self.kinds.values()),
            "kinds": self.kinds,
            "samples": len(lengths),
            "dropped": list(self.dropped),
            "truncated": sum(sample.cut > 0 for sample in self.samples),
            "tokens": sum(len(sample.tokens) for sample in self.samples),
            "loss_tokens": sum(sample.count for sample in self.samples),
            "cut_tokens": sum(sample.cut for sample in self.samples),
            "length": {name: lengths[int(share * (len(lengths) - 1))] for name, share in _SHARES.items()},
        }


@dataclass(frozen=True)
class Corpus:
    """What a run reads.

    Args:
        train: what it learns from.
        valid: what it is validated on, if anything.
    """

    train: Part
    valid: Part | None

    @property
    def sha256(self) -> list[str]:
        """Of the files."""
        return [sha256_file(part.file) for part in (self.train, self.valid) if part is not None]


_SHARES = {"least": 0.0, "median": 0.5, "p95": 0.95, "most": 1.0}


def load(settings: Settings, tokenizer: ChatTokenizer) -> Corpus:
    """Read and encode the data of a run.

    Raises:
        InputError: see `optiq.lora.records` and `optiq.lora.data`; nothing to learn from; records of another method.
    """
    train, valid = records.find(settings.data)
    if settings.valid is not None:
        valid = user_path(settings.valid)
        if not valid.is_file():
            raise InputError(f"--valid {valid}: no such file")
    encoder = Encoder(tokenizer, settings.max_length, settings.mask_prompt, settings.all_turns)
    return Corpus(_part(train, encoder, settings.method), None if valid is None else _part(valid, encoder, settings.method))


def _part(file: Path, encoder: Encoder, method: str) -> Part:
    found = records.read(file)
    wanted = "dpo" if found[0].kind == "preference" else "sft"
    if wanted != method:
        raise InputError(f"{file} holds records of kind {found[0].kind}, which are for --method {wanted}, not {method}")
    kinds: dict[str, int] = {}
    units: list[Unit] = []
    dropped = []
    for record in found:
        kinds[record.kind] = kinds.get(record.kind, 0) + 1
        samples = encoder.samples(record)
        if not samples:
            dropped.append(record.place)
        units += [tuple(samples)] if method == "dpo" and samples else [(sample,) for sample in samples]
    if not units:
        raise InputError(f"{file}: no sample carries loss within {encoder.length} tokens; raise --max-seq-length")
    return Part(file, kinds, tuple(units), tuple(dropped))


def lengths(units: Sequence[Unit]) -> list[int]:
    """Tokens of each unit."""
    return [sum(len(sample.tokens) for sample in unit) for unit in units]
