"""The screen Fine-tune: a model, data as the model will read them, training with its losses, and what becomes of adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from nicegui import ui
from nicegui.events import UploadEventArguments

from optiq.lab.jobs.job import OPEN, Job
from optiq.lab.jobs.log import Log
from optiq.lab.pages.frame import opened
from optiq.lab.parts.answer import answer
from optiq.lab.parts.command import CommandBox
from optiq.lab.parts.elements import box, button, folded, heading, link_button, note, paragraph, say, section, size, table, words
from optiq.lab.parts.examples import examples
from optiq.lab.parts.fields import Fields
from optiq.lab.parts.jobform import JobForm, Order, jobs_of
from optiq.lab.parts.losses import losses_picture
from optiq.lab.parts.picker import ModelPicker
from optiq.lab.place import free_name, slug
from optiq.lab.text import line
from optiq.lab.tuning import (
    FUSE,
    MERGE,
    METHODS,
    PRESETS,
    SCALINGS,
    TRAIN,
    Adapter,
    Form,
    Losses,
    adapters,
    data_sets,
    fuse_words,
    losses,
    merge_words,
)
from optiq.lab.workbench import Workbench

ABOUT = "Teach a model with an adapter: small additions beside its weights, which stay as they are, quantized or not."
MOST_BYTES = 500_000_000


def register(bench: Workbench) -> None:
    """Put the screen at its address."""

    @ui.page("/fine-tune")
    async def fine_tune(model: str = "") -> None:
        screen = await opened(bench, "Fine-tune", ABOUT, lambda: _Screen(bench, model))
        screen.picker.renew()


class _Screen:
    """One visit: the form, the training that runs, the adapters there are."""

    def __init__(self, bench: Workbench, model: str) -> None:
        self.bench, self.form = bench, Form(model=model)
        self.job: JobForm | None = None
        with section("Model and data"):
            self._data()
        with section("Training"):
            self._settings()
            self.job = JobForm(bench.queue, TRAIN, self._order, self.form.missing, "Train", self._live, self._ended)
        with section("Adapters"):
            self.made = box("stack")
        self._show_adapters()

    def _data(self) -> None:
        self.picker = ModelPicker(self.bench.library, "Model", self.form.model, chosen=self._model)
        self.fields = Fields(self.form, self._changed)
        with box("grid"):
            self.fields.select("Data, a file or a folder", "data", data_sets(self.bench.place), typed=True)
            self.fields.select("Learn from", "method", METHODS)
            self.fields.text("Longest sample, tokens", "length", "512")
        self.fields.check("Prompts carry no loss, replies alone do", "mask_prompt")
        upload = ui.upload(auto_upload=True, max_file_size=MOST_BYTES, on_upload=self._take).classes("upload")
        upload.props('accept=".jsonl,.json,.txt" aria-hidden="true"')
        upload.on_rejected(lambda: say(f"a file of data may have {MOST_BYTES / 1e6:g} MB at most, and ends in .jsonl", "warning"))
        with folded("What data look like"):
            paragraph("JSON lines, each with messages; or prompt and completion; or text; or prompt, chosen and rejected.")
            paragraph("A folder holds train.jsonl, and valid.jsonl to keep the best adapter by.")
        self.check_box = CommandBox(self.form.check_words())
        with box("bar"):
            button("Check the data", self._check, "main")
            button("Add a file", lambda: upload.run_method("pickFiles"), "quiet", icon="attach_file")
        self.checked = box("stack")

    def _settings(self) -> None:
        fields = self.fields
        with box("grid"):
            fields.select("Preset", "preset", {name: name for name in PRESETS})
            fields.text("Steps", "iters", "as many as the passes take")
            fields.text("Passes over the data", "epochs", "3; preferences 1")
            fields.text("Learning rate", "lr", "2e-4; preferences 5e-5")
            fields.text("Samples per batch", "batch", "1")
            fields.text("Name of the adapter", "name", "made of model and data")
        with folded("More"):
            with box("grid"):
                fields.text("Rank", "rank", "the preset's")
                fields.select("Ranks of layers", "rank_scaling", SCALINGS)
                fields.text("Layers by the ends of their names", "targets", "all linear layers")
                fields.text("Blocks, counted from the end", "layers", "all")
                fields.text("Batches per step", "accumulation", "1")
                fields.text("Dropout", "dropout", "0")
                fields.text("Steps between validations", "eval_every", "200")
                fields.text("End after validations without progress", "patience", "never")
                fields.text("Steps between states to go on from", "save_every", "100")
                fields.text("Seed", "seed", "0")
            with box("bar"):
                fields.check("Train magnitudes too (DoRA)", "dora")
                fields.check("Divide by the root of the rank (rsLoRA)", "rslora")

    def _model(self, value: str) -> None:
        self.form.model = value
        self._changed()

    def _changed(self) -> None:
        self.check_box.show(self.form.check_words())
        if self.job is not None:
            self.job.show()

    async def _take(self, event: UploadEventArguments) -> None:
        file = Path(event.file.name)
        path = free_name(self.bench.place.folder("data"), slug(file.stem), ".jsonl")
        await event.file.save(path)
        self.fields.put("data", str(path), line(path.name, 80))
        say(f"kept as {path}")

    async def _check(self) -> None:
        if problem := self.form.missing():
            say(problem, "warning")
            return
        report = await answer(self.checked, self.form.check_words(), "Reading …")
        if report is None:
            return
        with self.checked:
            examples(report)

    def _order(self) -> Order:
        output = self.bench.outputs.free("adapters", self.form.output_name)
        title = f"Fine-tune {line(Path(self.form.model).name, 60)} on {line(Path(self.form.data).name, 60)}"
        return Order(title, self.form.train_words(output.path), {"model": self.form.model}, output)

    def _live(self, job: Job) -> None:
        def read() -> Losses:
            return losses(Path(str(job.facts["output"])), self.bench.queue.log(job.id).notes)

        losses_picture(read, live=job.state in OPEN)
        if job.state in OPEN:
            paragraph(
                "Cancel stops and keeps: the adapter of the steps so far is written, and Resume goes on from there.", "soft"
            )

    def _ended(self, job: Job, log: Log) -> None:
        self._changed()
        self._show_adapters()

    def _show_adapters(self) -> None:
        self.made.clear()
        found = adapters(self.bench.place)
        with self.made:
            if not found:
                paragraph("Adapters that are trained here appear here.", "soft")
                return
            head = ["adapter", "for", "learnt from", "steps", "validated loss", "actions"]
            table(head, [self._row(one) for one in found], right=(3, 4), label="Adapters")
            self.opened = box("stack")
            if len(found) > 1:
                with folded("Merge adapters of one model"):
                    _Merge(self.bench, found, self._show_adapters)

    def _row(self, one: Adapter) -> list[object]:
        base = self.bench.library.find(one.base)

        def actions() -> None:
            with box("bar"):
                button("Losses", partial(self._open_losses, one), "quiet", label=f"Losses of {one.title}")
                sides = urlencode({"model": one.base, "adapter": str(one.path)}, errors="replace")
                link_button("Compare", f"/compare?{sides}", f"Compare {one.title} with its model")
                link_button("Serve", f"/server?{sides}", f"Serve {one.title} with its model")
                button("Fuse", partial(self._open_fuse, one), "quiet", label=f"Fuse {one.title}")

        return [
            one.title,
            base.title if base else line(Path(one.base).name, 60),
            METHODS.get(one.method, one.method or "–"),
            "–" if one.steps is None else f"{one.steps:,}",
            "–" if one.valid is None else f"{one.valid:.4f}",
            actions,
        ]

    def _open_losses(self, one: Adapter) -> None:
        self.opened.clear()
        with self.opened:
            heading(one.title, 3)
            losses_picture(partial(losses, one.path, self._notes(one)), live=False)
            words(line(one.path), classes="soft small")

    def _notes(self, one: Adapter) -> Iterable[tuple[str, int, str]]:
        """What the job that trained it has noted, where that is still known."""
        made = (job for job in jobs_of(self.bench.queue, TRAIN) if job.facts.get("output") == str(one.path))
        return next((self.bench.queue.log(job.id).notes for job in made), ())

    def _open_fuse(self, one: Adapter) -> None:
        def order() -> Order:
            output = self.bench.outputs.free("models", slug(f"{one.path.name}-fused"))
            return Order(f"Fuse {one.title}", fuse_words(one, output.path), {"model": one.base}, output)

        self.opened.clear()
        with self.opened:
            heading(f"Fuse {one.title}", 3)
            paragraph(
                "Writes a model that needs no adapter; layers that it touches are coded again, and what that costs is measured."
            )
            JobForm(self.bench.queue, FUSE, order, str, "Fuse", ended=self._fused)

    def _fused(self, job: Job, log: Log) -> None:
        """Say where the model is, and what coding it again cost."""
        if log.result is None:
            return
        kl = log.result.get("kl")
        cost = f"; {kl['mean']:.3g} nats per token from model and adapter" if kl else ""
        with self.opened:
            note(f"{log.result['output']}, {size(log.result['bytes'])}{cost}", "good")


class _Merge:
    """Which adapters are added up, with which weights; ``renew`` is called when there is a new one."""

    def __init__(self, bench: Workbench, known: list[Adapter], renew: Callable[[], None]) -> None:
        self.bench, self.known = bench, {str(one.path): one for one in known}
        self.adapters: list[str] = []
        self.scales, self.name = "", "merged"
        fields = Fields(self, lambda: self.job.show())
        with box("grid"):
            fields.select("Adapters", "adapters", {path: one.title for path, one in self.known.items()}, several=True)
            fields.text("Weights", "scales", "1 each, for instance 1.0,0.5")
            fields.text("Name", "name")
        self.job = JobForm(bench.queue, MERGE, self._order, self._missing, "Merge", ended=lambda job, log: renew())

    def _missing(self) -> str:
        if len(self.adapters) < 2:
            return "choose two adapters at least"
        return "" if len({self.known[path].base for path in self.adapters}) == 1 else "choose adapters of one model"

    def _order(self) -> Order:
        output = self.bench.outputs.free("adapters", slug(self.name or "merged"))
        chosen = [self.known[path] for path in self.adapters]
        return Order(f"Merge {len(chosen)} adapters", merge_words(chosen, self.scales, output.path), output=output)
