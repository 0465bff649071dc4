"""The work directory of a conversion: which stage's files belong to which model, text and settings.

Every stage has a directory or file named by a hash of all that its content depends on, so that stale work is never taken for
fresh, several conversions can share one directory, and a killed run goes on by starting again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optiq import files
from optiq.errors import InputError, ModelError, ResourceError
from optiq.events import QUIET, Events
from optiq.measure.text import read_samples, samples
from optiq.measure.tokens import Tokens, tokenise
from optiq.models.chat import has_tokenizer, load_tokenizer
from optiq.models.checkpoint import Checkpoint
from optiq.models.selftext import self_text
from optiq.quantize import places
from optiq.quantize.settings import Settings

FORMAT = 1  # raised when the meaning of a stage's files changes
SELF_SEEDS = {"calibration": 1, "dev": 2, "score": 3}


@dataclass(frozen=True)
class Workspace:
    """A directory for stage files, and the identity of the model that they belong to; locked while it is open.

    Args:
        lock: descriptor that holds the lock, which goes with the process.
        passing: the directory is this conversion's alone and goes when it is done.
    """

    path: Path
    model_key: str
    lock: int
    passing: bool

    @classmethod
    def open(cls, settings: Settings, checkpoint: Checkpoint) -> Workspace:
        """The work directory of these settings; without what earlier runs left there where resuming is off.

        Raises:
            InputError: it cannot be made.
            ResourceError: another conversion is at work there.
        """
        path = places.work_path(settings)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"cannot make the work directory {path}: {error.strerror}; choose another -o or --work.") from error
        if not files.lock(lock):
            os.close(lock)
            raise ResourceError(f"another conversion is at work in {path}; wait for it, or choose another -o or --work")
        if not settings.resume:
            for entry in places.stage_files(path):
                shutil.rmtree(entry)
        return cls(path, model_key(checkpoint), lock, settings.work is None)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.passing and kind is None:
            self.remove()
        elif self.passing:
            with suppress(OSError):
                self.path.rmdir()  # where nothing was finished
        os.close(self.lock)

    def stage(self, name: str, **depends: Any) -> Path:
        """Path of a stage's files: its name and a hash of the model and of everything else that it depends on."""
        key = files.sha256_json({"format": FORMAT, "model": self.model_key, **depends})[:16]
        return self.path / f"{name}-{key}"

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.path, ignore_errors=True)


def model_key(checkpoint: Checkpoint) -> str:
    """Identity of a checkpoint: its config, and size, time and first and last megabyte of each shard."""
    digest = hashlib.sha256(files.sha256_json(checkpoint.config).encode())
    for file in checkpoint.files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} {file.stat().st_mtime_ns}".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(1 << 20))
            handle.seek(max(0, size - (1 << 20)))
            digest.update(handle.read(1 << 20))
    return digest.hexdigest()


@dataclass(frozen=True)
class Text:
    """The three token sets of a conversion; `notes` say what a reader of the report should know about them."""

    calibration: Tokens
    dev: Tokens
    score: Tokens
    notes: tuple[str, ...]


def text(settings: Settings, checkpoint: Checkpoint, events: Events = QUIET) -> Text:
    """Tokenise the three sets, or let the model write them where it came without a tokenizer.

    Raises:
        InputError: a calibration file that cannot be used.
        ModelError: a tokenizer that cannot be read.
    """
    limit = _context(checkpoint)
    length = min(settings.calibration_length, limit)
    rows = {"calibration": settings.calibration_samples, "dev": settings.dev_rows, "score": settings.score_rows}
    notes = [] if length == settings.calibration_length else [f"rows have {length} tokens, the model's whole context"]
    with events.stage("text", 3, "sets") as stage:
        if not has_tokenizer(checkpoint.path):
            if settings.calibration_mix is not None:
                raise InputError(
                    f"--calibration-mix needs a tokenizer, and {checkpoint.path} has none; copy the model's files there."
                )
            note = "the checkpoint has no tokenizer: calibration, dev and score text were sampled from the model itself"
            events.warn(note)
            sets = {name: _own_text(checkpoint, name, count, length) for name, count in rows.items()}
            return Text(**sets, notes=(*notes, note))
        tokenizer = load_tokenizer(checkpoint.path)
        sets = {}
        for name, count in rows.items():
            own = name == "calibration" and settings.calibration_mix is not None
            found = read_samples(settings.calibration_mix) if own and settings.calibration_mix else samples(name)
            domains = len({sample.domain for sample in found})
            sets[name] = tokenise(found, tokenizer, length, max(1, count * 6 // domains) if own else count, name)
            notes += [f"{name} text: {note}" for note in sets[name].notes]
            stage.advance(note=name)
    size = _vocabulary(checkpoint)
    worst = max(int(tokens.ids.max()) for tokens in sets.values())
    if size is not None and worst >= size:
        raise ModelError(
            f"{checkpoint.path}: the tokenizer gives id {worst}, the model has {size} embeddings; the two do not belong together."
        )
    return Text(**sets, notes=tuple(notes))


def _own_text(checkpoint: Checkpoint, name: str, count: int, length: int) -> Tokens:
    ids = self_text(checkpoint, min(count * 6, 64), length, SELF_SEEDS[name])
    digest = hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()
    return Tokens(ids, ("self",) * len(ids), tuple(f"self-{i}" for i in range(len(ids))), digest, name)


def _context(checkpoint: Checkpoint) -> int:
    return _positive(checkpoint, "max_position_embeddings") or 1 << 30


def _vocabulary(checkpoint: Checkpoint) -> int | None:
    return _positive(checkpoint, "vocab_size")


def _positive(checkpoint: Checkpoint, key: str) -> int | None:
    """A number of the config, None where it says nothing."""
    value = checkpoint.text_config.get(key)
    if value is not None and not isinstance(value, int | float):
        raise ModelError(f"{checkpoint.path / 'config.json'}: {key} is {value!r}, expected a number; download it again.")
    return int(value) if value else None
