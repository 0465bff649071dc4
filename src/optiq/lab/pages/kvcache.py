"""The screen KV cache: what packed keys and values cost, a budget along the curve with its memory, the recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from nicegui import ui
from nicegui.events import ValueChangeEventArguments

from optiq.errors import OptiqError
from optiq.lab.caching import MAKE, MEASURE, SCHEMES, Form, Study
from optiq.lab.jobs.job import OPEN, Job
from optiq.lab.jobs.log import Log
from optiq.lab.pages.frame import opened
from optiq.lab.parts import charts
from optiq.lab.parts.cachedamage import cache_damage
from optiq.lab.parts.elements import box, figures, folded, link_button, note, paragraph, section, size, table, words
from optiq.lab.parts.fields import Fields
from optiq.lab.parts.jobform import JobForm, Order, jobs_of
from optiq.lab.parts.picker import ModelPicker
from optiq.lab.text import line
from optiq.lab.workbench import Workbench

ABOUT = "A long context is mostly cache. Keep its keys and values in fewer bits, where that costs least."
CONTEXT = 32_768


def register(bench: Workbench) -> None:
    """Put the screen at its address."""

    @ui.page("/kv-cache")
    async def kv_cache(model: str = "") -> None:
        screen = await opened(bench, "KV cache", ABOUT, lambda: _Screen(bench, model))
        screen.picker.renew()
        screen.open(model)


class _Screen:
    """One visit: the model, how it is measured, and the parts that follow from what was."""

    def __init__(self, bench: Workbench, model: str) -> None:
        self.bench, self.form, self.bits, self.context = bench, Form(), 4.5, CONTEXT
        self.measure: JobForm | None = None
        with section("Model"):
            self.picker = ModelPicker(bench.library, "Model", model, chosen=self.open)
            with folded("How it is measured"), box("grid"):
                fields = Fields(self.form, self._changed)
                fields.text("Widths to choose from", "widths")
                fields.select("Codes", "scheme", SCHEMES)
                fields.text("Rows of text", "rows", "1 to 4, by size")
                fields.text("Tokens per row", "length", "8192, or the model's context")
        self.body = box("stack")

    def _changed(self) -> None:
        if self.measure is not None:
            self.measure.show()

    def open(self, model: str) -> None:
        """Show what there is for a model, and what can be done next."""
        self.body.clear()
        self.measure = None
        if not model:
            return
        self.study = Study(self.bench.place, model)
        with self.body:
            with section("What packing costs"):
                try:
                    self._damages()
                except OptiqError as error:
                    note(error, "error")
            if self.study.measured:
                self._budget()

    def _damages(self) -> None:
        if self.study.measured:
            cache_damage(self.study.damages())
            with folded("Measure again"):
                self._measure()
        else:
            paragraph(
                "Measured once per model: what each width costs in each layer's keys, and in its values. Every budget uses it."
            )
            self._measure()

    def _measure(self) -> None:
        def order() -> Order:
            return Order(f"Measure caches of {self._title()}", self.study.measure_words(self.form), {"model": self.study.model})

        self.measure = JobForm(self.bench.queue, MEASURE, order, self._being_measured, "Measure", ended=self._measured)

    def _being_measured(self) -> str:
        """Why one more measurement makes no sense now."""
        same = [job for job in jobs_of(self.bench.queue, MEASURE) if job.facts["model"] == self.study.model]
        open_ = [job.id for job in same if job.state in OPEN]
        return f"job {open_[0]} measures this model already" if open_ else ""

    def _title(self) -> str:
        found = self.bench.library.find(self.study.model)
        return found.title if found else line(Path(self.study.model).name, 60)

    def _measured(self, job: Job, log: Log) -> None:
        ui.timer(0.1, partial(self.open, self.study.model), once=True)

    def _budget(self) -> None:
        with section("Budget") as place:
            try:
                self.curve = self.study.curve()
            except OptiqError as error:
                note(error, "error")
                return
            self._slider()
        with place:
            self.make = JobForm(self.bench.queue, MAKE, self._order, str, "Make the recipe", ended=self._made)
        with section("Recipes"):
            self.recipes = box("stack")
        self._show_recipes()

    def _slider(self) -> None:
        low, high = self.curve.points[0].bits, self.curve.points[-1].bits
        self.bits = min(max(self.bits, low), high)
        self.figures = figures([("mean width", ""), ("memory", ""), ("memory at 16 bits", ""), ("predicted KL", "")])
        length = ui.number("Context, tokens", value=self.context, min=1, format="%d", on_change=self._context_chosen)
        length.props("outlined dense")
        slider = ui.slider(min=round(low, 2), max=round(high, 2), step=0.01, value=round(self.bits, 2), on_change=self._slid)
        slider.props('label color=primary aria-label="Budget in bits per value"')
        self.picture = charts.Chart(self._picture(), "Predicted KL over the mean width, with the chosen budget")
        self._follow()

    def _context_chosen(self, event: ValueChangeEventArguments[Any]) -> None:
        self.context = int(event.value or 1)
        self._follow()

    def _slid(self, event: ValueChangeEventArguments[Any]) -> None:
        self.bits = float(event.value)
        self._follow()
        point = self.curve.within(self.bits)
        mark = {"id": "mark", "data": [{"value": [point.bits, point.kl], "name": "this budget"}]}
        self.picture.merge({"series": [mark]})
        self.make.show()

    def _follow(self) -> None:
        """Figures for budget and context as they are."""
        point = self.curve.within(self.bits)
        self.figures["mean width"].set_text(f"{point.bits:.2f} bits")
        self.figures["memory"].set_text(size(point.bytes * self.context))
        self.figures["memory at 16 bits"].set_text(size(self.curve.full_bytes * self.context))
        self.figures["predicted KL"].set_text(f"{point.kl:.2g} nats")

    def _picture(self) -> dict[str, Any]:
        point = self.curve.within(self.bits)
        points = [(one.bits, max(one.kl, 1e-12)) for one in self.curve.points]
        curve = {**charts.line_series(points, "predicted", dots=True), "id": "curve"}
        mark = {**charts.mark_series([(point.bits, max(point.kl, 1e-12), "this budget")]), "id": "mark"}
        y = charts.axis("KL, nats per token", "log", nameGap=64)
        return charts.options(charts.axis("mean width of codes, bits"), y, [curve, mark], grid=charts.WIDE_GRID)

    def _order(self) -> Order:
        output = self.bench.outputs.free("kv", self.study.output_name(self.bits))
        title = f"Cache of {self._title()} at {self.bits:.2f} bits"
        return Order(title, self.study.make_words(self.bits, output.path), {"model": self.study.model}, output)

    def _made(self, job: Job, log: Log) -> None:
        self.make.show()
        self._show_recipes()

    def _show_recipes(self) -> None:
        found = self.study.recipes(self.bench.queue)
        self.recipes.clear()
        with self.recipes:
            if not found:
                paragraph("Recipes that are made here appear here, what was measured beside what was predicted.", "soft")
                return
            head = ["recipe", "bits", f"at {self.context:,} tokens", "KL predicted", "KL measured", "actions"]
            table(head, [self._recipe(one) for one in found], right=(1, 2, 3, 4), label="Recipes")
            paragraph(
                "Serve uses a recipe as --kv-config; measured is with every token packed, as the prediction has it.", "soft small"
            )

    def _recipe(self, one: Any) -> list[object]:
        folder = str(Path(one["config"]).parent)

        def name() -> None:
            words(line(Path(folder).name), "strong")
            ui.element("br")
            words(line(folder), classes="soft small")

        def actions() -> None:
            sides = urlencode({"model": self.study.model, "kv": folder}, errors="replace")
            with box("bar"):
                link_button("Compare", f"/compare?{sides}", f"Compare {line(Path(folder).name)} with the cache in 16 bits")
                link_button("Serve", f"/server?{sides}", f"Serve the model with {line(Path(folder).name)}")

        memory = size(one["bytes_per_token"] * self.context)
        return [
            name,
            f"{one['mean_bits']:.2f}",
            memory,
            f"{one['predicted_kl']:.2g}",
            f"{one['measured_kl']['packed']:.2g}",
            actions,
        ]
