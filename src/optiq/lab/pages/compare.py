"""The screen Compare: sides on the same prompt and seed, and models' divergence token by token."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import ui

from optiq.errors import OptiqError
from optiq.lab.caching import recipe_folders
from optiq.lab.comparing import CACHES, MEASURE, MOST_SIDES, TEXT, Comparison, Form, Side, comparisons
from optiq.lab.jobs.job import Job
from optiq.lab.jobs.log import Log
from optiq.lab.pages.frame import opened
from optiq.lab.parts.command import CommandBox
from optiq.lab.parts.comparison import comparison_view
from optiq.lab.parts.elements import box, button, folded, heading, paragraph, say, section
from optiq.lab.parts.fields import Fields
from optiq.lab.parts.jobform import JobForm, Order, jobs_of
from optiq.lab.parts.picker import ModelPicker
from optiq.lab.parts.sidebyside import SideBySide
from optiq.lab.tuning import adapters
from optiq.lab.workbench import Workbench

ABOUT = "Models, quantizations, caches and adapters beside each other: the same prompt, the same seed, and every token measured."
SIDES = ("Reference", "Second", "Third, or none")


def register(bench: Workbench) -> None:
    """Put the screen at its address."""

    @ui.page("/compare")
    async def compare(model: str = "", other: str = "", third: str = "", adapter: str = "", kv: str = "") -> None:
        second = Side(other or (model if adapter or kv else ""), adapter, kv)
        form = Form([Side(model), second, Side(third)])
        screen = await opened(bench, "Compare", ABOUT, lambda: _Screen(bench, form))
        screen.renew_pickers()


class _Screen:
    """One visit: the sides, their texts, their divergence."""

    def __init__(self, bench: Workbench, form: Form) -> None:
        self.bench, self.form = bench, form
        self.pickers: list[ModelPicker] = []
        self.shown: list[Callable[[], None]] = []
        with section("Sides"), box("thirds"):
            for number in range(MOST_SIDES):
                self._side(number)
        with section("The same prompt"):
            self._prompt()
        with section("Divergence, token by token"):
            self._measure()

    def _side(self, number: int) -> None:
        side = self.form.sides[number]
        with box("stack"):
            heading(SIDES[number], 3)
            self.pickers.append(ModelPicker(self.bench.library, "Model", side.model, chosen=partial(self._model, side)))
            fields = Fields(side, self._changed)
            mine = {"": "none", **{str(one.path): one.title for one in adapters(self.bench.place)}}
            fields.select("Adapter", "adapter", mine, typed=True)
            fields.select("Key/value cache", "cache", {**CACHES, **recipe_folders(self.bench.place)}, typed=True)

    def _prompt(self) -> None:
        fields = Fields(self.form, self._changed)
        fields.lines("Prompt", "prompt")
        with box("grid"):
            fields.text("Seed", "seed", "0")
            fields.text("Temperature", "temperature", "the family's")
            fields.text("Tokens at most", "tokens", "the command's own")
        fields.check("Let the models think first", "thinking")
        commands = box("stack")

        def show() -> None:
            commands.clear()
            with commands:
                for side in self.form.chosen or [Side()]:
                    CommandBox(self.form.text_words(side), title=side.title or "This runs")

        self.shown.append(show)
        show()
        button("Write", self._write, "main")
        self.texts = box("stack")
        if last := jobs_of(self.bench.queue, TEXT):
            self._show_texts([job.id for job in reversed(last) if job.facts["run"] == last[0].facts["run"]])

    def _measure(self) -> None:
        paragraph(
            "How far models are from the reference on text that nothing was tuned on; adapters and caches have no part in it."
        )
        self.job = JobForm(self.bench.queue, MEASURE, self._order, self._missing, "Measure", ended=self._measured)
        self.shown.append(self.job.show)
        self.measured = box("stack")
        self._show_measured()

    def renew_pickers(self) -> None:
        """Offer what the disk has now."""
        for picker in self.pickers:
            picker.renew()

    def _model(self, side: Side, value: str) -> None:
        side.model = value
        self._changed()

    def _changed(self) -> None:
        for show in self.shown:
            show()

    def _write(self) -> None:
        if not self.form.chosen:
            say("choose a model first", "warning")
            return
        run, numbers = f"{time.time():.3f}", []
        for side in self.form.chosen:
            model = self.bench.library.find(side.model)
            facts = {"what": TEXT, "run": run, "side": side.title, "bytes": model.bytes if model else 0}
            try:
                numbers.append(self.bench.queue.add(f"Write with {side.title}", self.form.text_words(side), facts).id)
            except OptiqError as error:
                say(error, "negative")
                return
        self._show_texts(numbers)

    def _show_texts(self, numbers: list[int]) -> None:
        self.texts.clear()
        with self.texts:
            SideBySide(self.bench.queue, numbers)

    def _missing(self) -> str:
        return "" if len(self.form.models) > 1 else "choose two different models first"

    def _order(self) -> Order:
        output = self.bench.outputs.free("compared", self.form.output_name, ".json")
        title = f"Compare {', '.join(Path(model).name for model in self.form.models)}"
        return Order(title, self.form.measure_words(self.bench.place, output.path), output=output)

    def _measured(self, job: Job, log: Log) -> None:
        self.job.show()
        self._show_measured()

    def _show_measured(self) -> None:
        found = comparisons(self.bench.place)
        self.measured.clear()
        with self.measured:
            if found:
                self.opened = box("stack")
                self._open(found[0])
                if len(found) > 1:
                    with folded("Earlier comparisons"), box("bar"):
                        for one in found:
                            button(one.title, partial(self._open, one), "quiet")

    def _open(self, one: Comparison) -> Any:
        self.opened.clear()
        with self.opened:
            heading(one.title, 3)
            comparison_view(one)
