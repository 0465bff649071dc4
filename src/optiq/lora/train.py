"""The training loop: steps, validations, the log, states to resume from, the best adapter.

    OUT/train.jsonl     one line per report, validation and end
    OUT/state/          while the run lasts (`optiq.lora.state`)
    OUT/adapter_*, OUT/adapters.safetensors    at the end (`optiq.lora.save`): the best validated, else the last

A run that is asked to end writes a state and the adapter as they are, so that it can be used, or gone on with.

Everything random is a function of seed and step, so that a run that was killed goes on to the bits that it would have had.
Data in: `Settings`. Data out: the directory and `Done`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from optiq import files
from optiq.errors import InputError, ModelError
from optiq.events import QUIET, Events
from optiq.lora import batches, corpus, initial, memory, optimizer, save, state
from optiq.lora import ranks as ranking
from optiq.lora import targets as targeting
from optiq.lora.adapters import MLX, PEFT
from optiq.lora.batches import Batch
from optiq.lora.layers import Part
from optiq.lora.learner import Dropout, Learner, Parameters, fresh
from optiq.lora.objectives import OBJECTIVES
from optiq.lora.settings import Settings
from optiq.models import chat, load
from optiq.models.hub import resolve
from optiq.models.places import check_apart

LOG = "train.jsonl"
OBSERVED = 16  # batches
KEPT = ("step", "best_loss", "best_step", "bad", "loss", "log")  # of a `Progress`, beside its trees


@dataclass(frozen=True)
class Done:
    """What a run came to.

    Args:
        path: the adapter's directory.
        steps: that were made.
        parameters: of the adapter.
        ranks: by path.
        train: the last reported loss.
        valid: the best validation loss; None without validation.
        best_step: where it was.
        seconds: of this process.
        tokens: that this process trained on.
        peak_bytes: of MLX's memory.
        resumed: the step that the run went on from.
        stopped: whether it ended early.
    """

    path: Path
    steps: int
    parameters: int
    ranks: Mapping[str, int]
    train: float
    valid: float | None
    best_step: int
    seconds: float
    tokens: int
    peak_bytes: int
    resumed: int
    stopped: bool


@dataclass
class Progress:
    """What changes from step to step; all but the trees is JSON."""

    parameters: Parameters
    first: Parameters
    second: Parameters
    best: Parameters
    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    bad: int = 0
    loss: float = math.nan
    log: list[dict[str, Any]] = field(default_factory=list)


def run(settings: Settings, events: Events = QUIET) -> Done:
    """Train an adapter.

    Raises:
        InputError: settings or data that cannot be, an output that is there.
        ModelError: the loss is not finite.
    """
    path = resolve(settings.model)
    check_output(settings, path)
    found = corpus.load(settings, chat.load_tokenizer(path))
    with events.stage("load"):
        model, _ = load.load_modules(path)
    targets = targeting.find(model, settings.target_modules, settings.num_layers)
    ranks = ranking.choose(targets, settings.rank_scaling, settings.rank, ranking.damages_of(path), settings.param_budget)
    scales = {name: settings.scale_of(rank) for name, rank in ranks.items()}
    learner = Learner(model, targets, scales, settings.recompute)
    trainer = Trainer(settings, found, learner, ranks, events)
    trainer.key = files.sha256_json([settings.key(), found.sha256, identity(path), ranks])
    try:
        return trainer.train()
    except KeyboardInterrupt:
        trainer.keep()
        raise


def check_output(settings: Settings, model: Path) -> None:
    """Refuse an output in which somebody's files would be lost.

    Args:
        settings: with the output, and what the run reads.
        model: the model's directory.

    Raises:
        InputError: says what is in the way.
    """
    output, data = settings.output, [file for file in corpus.files_of(settings) if file is not None]
    adapter, interrupted = save.present(output), state.present(output)
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InputError(f"{output} is a {'link' if output.is_symlink() else 'file'}, expected a directory; choose another -o")
    if (output / LOG).resolve() in [file.resolve() for file in data]:
        raise InputError(f"-o {output} holds the data {LOG}, where the log would be written; choose another directory")
    if not settings.overwrite:
        if adapter and not interrupted:
            raise InputError(f"{output} holds an adapter already; choose another -o, or use --overwrite")
        return
    check_apart("-o", output, model, "the model {}")
    for file in data:
        check_apart("-o", output, file, "the data {}")
    if not (adapter or interrupted) and output.exists() and any(output.iterdir()):
        raise InputError(f"{output} holds other files than an adapter's, so --overwrite does not replace it; choose another -o")


def identity(path: Path) -> list[Any]:
    """What tells one model directory from another, without reading the weights."""
    return [
        files.sha256_file(path / "config.json"),
        *sorted((file.name, file.stat().st_size) for file in path.glob("*.safetensors")),
    ]


class Trainer:
    """One run.

    Args:
        settings: as asked.
        data: samples.
        learner: the model.
        ranks: by path.
        events: progress.
    """

    def __init__(
        self, settings: Settings, data: corpus.Corpus, learner: Learner, ranks: Mapping[str, int], events: Events = QUIET
    ) -> None:
        self._data, self._learner, self._ranks, self._events = data, learner, ranks, events
        self._objective = OBJECTIVES[settings.method](learner, settings)
        settings = replace(settings, packing=settings.packing and self._keeps_apart(settings))
        room = settings.batch_size * settings.max_length * self._objective.unit
        sizes = corpus.lengths(data.train.units)
        self._groups = batches.groups(sizes, settings.batch_size, room, settings.packing, settings.seed)
        self._per_epoch = math.ceil(len(self._groups) / settings.accumulation)
        self.settings = settings.with_steps(self._per_epoch)
        self._valid = self._validation()
        self._count = targeting.parameters(learner.targets, ranks)
        self._room = memory.predicted(learner, self._count, self.settings)
        self._gradient = mx.value_and_grad(self._loss)
        self.key = ""
        self._whole: Progress | None = None  # as the last step left it, for `keep`

    def train(self) -> Done:
        """All steps that are left, then the adapter."""
        s, now = self.settings, self.start()
        begun, first, tokens = time.perf_counter(), now.step, 0
        mx.reset_peak_memory()
        stopped = False
        with self._events.stage("train", s.iters, "steps") as stage:
            stage.advance(now.step)
            while now.step < (s.iters or 0) and not stopped:
                loss, used = self.step(now)
                tokens += used
                stage.advance(1, f"loss {loss:.4f}")
                if now.step % s.report_every == 0 or now.step == s.iters:
                    seconds = time.perf_counter() - begun
                    self._note(
                        now, loss=loss, lr=s.lr_at(now.step - 1), tokens_per_s=tokens / seconds, peak_bytes=mx.get_peak_memory()
                    )
                if self._valid and (now.step % s.eval_every == 0 or now.step == s.iters):
                    stopped = self._validated(now)
                if now.step % s.save_every == 0 and now.step != s.iters:
                    self._save(now)
                self._whole = replace(now, log=list(now.log))
        return self._finish(now, first, time.perf_counter() - begun, tokens, stopped)

    def validate(self, parameters: Parameters | None) -> float:
        """The mean objective on the validation data, nats per token (dpo: per pair)."""
        total, weight = 0.0, 0
        for batch in self._valid:
            found, _ = self._objective(parameters, batch, self._objective.prepare(batch), None)
            total += number(found)
            weight += self._objective.weight(batch)
        return total / weight

    def _keeps_apart(self, settings: Settings) -> bool:
        """Whether packing gives what single samples give; says so where not."""
        if not settings.packing:
            return False
        two = sorted(self._data.train.samples, key=lambda sample: len(sample.tokens))[:2]
        if len(two) < 2:
            return True
        short = [
            replace(sample, tokens=sample.tokens[:64], loss=(False, *([True] * (min(64, len(sample.tokens)) - 1))))
            for sample in two
        ]
        first, second = (batches.collate([sample], packing=True) for sample in short)
        if self._learner.agrees(first, second, batches.collate(short, packing=True)):
            return True
        self._events.warn("samples that are packed into one row reach each other in this model; going on without packing")
        return False

    def _validation(self) -> list[Batch]:
        if self._data.valid is None:
            return []
        s, units = self.settings, self._data.valid.units
        room = s.batch_size * s.max_length * self._objective.unit
        groups = batches.groups(corpus.lengths(units), s.batch_size, room, s.packing, s.seed)
        return [self._batch(units, group) for group in (groups if s.val_batches < 0 else groups[: s.val_batches])]

    def start(self) -> Progress:
        """Where an interrupted run was, or the beginning."""
        s = self.settings
        found = None if s.overwrite else state.load(s.output, self.key, list(self._learner.targets))
        if found is not None:
            facts, trees = found
            self._events.info(f"going on after step {facts['step']} of {s.iters}")
            known = {name: facts[name] for name in KEPT}
            return Progress(trees["parameters"], trees["first"], trees["second"], trees["best"], **known)
        if s.output.exists() and s.overwrite:
            files.remove_tree(s.output)
        parameters = fresh(self._learner.targets, self._ranks, s.seed, s.dora)
        if s.base is not None:
            with self._events.stage("initialise"):
                parameters = initial.from_error(self._learner, parameters, self._observed(), resolve(s.base))
        memory.announce(self._learner, self._count, s, self._events)
        if any(part["a"].ndim == 3 for part in parameters.values()):
            self._events.warn(
                f"experts get adapters, for which PEFT has no form: {PEFT} will not be written; "
                f"optiq and mlx-lm read {MLX}, and --target-modules can leave experts out"
            )
        return Progress(parameters, tree_map(mx.zeros_like, parameters), tree_map(mx.zeros_like, parameters), parameters)

    def _observed(self) -> list[Batch]:
        """The batches on which the inputs of layers are looked at: the first ones of the run."""
        order = batches.order(len(self._groups), self.settings.seed, 0)
        return [self._batch(self._data.train.units, self._groups[i]) for i in order[:OBSERVED]]

    def step(self, now: Progress) -> tuple[float, int]:
        """One optimizer step; the loss of its batches and their tokens."""
        s = self.settings
        epoch, at = divmod(now.step, self._per_epoch)
        order = batches.order(len(self._groups), s.seed, epoch)
        chosen = [self._groups[i] for i in order[at * s.accumulation : (at + 1) * s.accumulation]]
        these = [self._batch(self._data.train.units, group) for group in chosen]
        total = sum(self._objective.weight(batch) for batch in these)
        loss, gradients = 0.0, None
        for index, batch in enumerate(these):
            dropout = Dropout(s.dropout, (s.seed, now.step, index), list(now.parameters)) if s.dropout else None
            with memory.bounded(self._room):
                found, new = self._gradient(now.parameters, batch, self._objective.prepare(batch), dropout, total)
                gradients = new if gradients is None else tree_map(mx.add, gradients, new)
                mx.eval(found, gradients)
            self._finite(found, now, batch)
            loss += number(found)
        length = optimizer.norm(gradients)
        self._finite(length, now, *these)
        gradients = optimizer.clipped(gradients, length, s.clip)
        now.parameters, now.first, now.second = optimizer.adamw(
            now.parameters, gradients, now.first, now.second, now.step + 1, s.lr_at(now.step), s.weight_decay
        )
        mx.eval(now.parameters, now.first, now.second)
        now.step += 1
        now.loss = loss
        return loss, sum(len(sample.tokens) for batch in these for sample in batch.samples)

    def _loss(self, parameters: Parameters, batch: Batch, prepared: Any, dropout: Dropout | None, total: int) -> mx.array:
        found: mx.array = self._objective(parameters, batch, prepared, dropout)[0]
        return found / total

    def _finite(self, value: mx.array, now: Progress, *these: Batch) -> None:
        if not mx.isfinite(value).item():
            places, what = ", ".join(batch.places for batch in these), "the loss or its gradient"
            raise ModelError(f"step {now.step + 1}: {what} is {value.item()}, from {places}; look at these lines, or lower --lr")

    def _batch(self, units: tuple[corpus.Unit, ...], group: tuple[int, ...]) -> Batch:
        return batches.collate([sample for index in group for sample in units[index]], self.settings.packing)

    def _validated(self, now: Progress) -> bool:
        """Validate, keep the best; whether patience is at an end."""
        s, found = self.settings, self.validate(now.parameters)
        self._note(now, valid=found, **self._margin(now.parameters))
        if now.best_loss is None or found < now.best_loss - s.min_delta:
            now.best, now.best_loss, now.best_step, now.bad = now.parameters, found, now.step, 0
        else:
            now.bad += 1
        return bool(s.patience) and now.bad >= s.patience

    def _margin(self, parameters: Parameters) -> dict[str, float]:
        """For preferences: the mean margin on the validation data."""
        if self.settings.method != "dpo":
            return {}
        found = [number(self._objective(parameters, batch, self._objective.prepare(batch), None)[1]) for batch in self._valid]
        return {"margin": sum(found) / sum(self._objective.weight(batch) for batch in self._valid)}

    def _note(self, now: Progress, **values: float) -> None:
        """One line of the log, and of the progress."""
        now.log.append({"step": now.step, **values})
        self._write_log(now)
        told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._events.info(f"step {now.step}: {told}")

    def _write_log(self, now: Progress) -> None:
        text = "".join(json.dumps(line) + "\n" for line in now.log)
        self.settings.output.mkdir(parents=True, exist_ok=True)
        files.write_text(self.settings.output / LOG, text)

    def _save(self, now: Progress) -> None:
        trees = {"parameters": now.parameters, "first": now.first, "second": now.second, "best": now.best}
        facts = {name: getattr(now, name) for name in KEPT}
        state.save(self.settings.output, self.key, facts, trees)

    def keep(self) -> None:
        """Write the state and the adapter of the last whole step; nothing where there was none."""
        if self._whole is not None:
            self._save(self._whole)
            self._write(self._whole)
            self._events.info(f"kept after step {self._whole.step} of {self.settings.iters}; the same command goes on from there")

    def _write(self, now: Progress) -> Parameters:
        """The adapter: the best parameters where they were validated, else the last; they are returned."""
        s = self.settings
        chosen = now.parameters if now.best_loss is None else now.best
        facts = {
            "rank_scaling": s.rank_scaling,
            "applied_ranks": dict(self._ranks),
            "method": s.method,
            "steps": now.step,
            "best_step": now.best_step or now.step,
            "valid_loss": now.best_loss,
            "settings": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(s).items()},
        }
        save.write(s.output, parts(chosen, self._learner.scales), s.model, facts, s.rslora)
        return chosen

    def _finish(self, now: Progress, first: int, seconds: float, tokens: int, stopped: bool) -> Done:
        s, chosen = self.settings, self._write(now)
        if (s.output / state.FOLDER).exists():
            files.remove_tree(s.output / state.FOLDER)
        count = sum(int(array.size) for part in chosen.values() for array in part.values())
        peak = int(mx.get_peak_memory())
        best = now.best_step or now.step
        return Done(s.output, now.step, count, self._ranks, now.loss, now.best_loss, best, seconds, tokens, peak, first, stopped)


def number(value: mx.array) -> float:
    """A scalar as Python's."""
    found = value.item()
    assert isinstance(found, float)
    return found


def parts(parameters: Parameters, scales: Mapping[str, float]) -> dict[str, Part]:
    """Trained parameters as parts of an adapter."""
    return {path: Part(part["a"], part["b"], scales[path], part.get("m")) for path, part in parameters.items()}
