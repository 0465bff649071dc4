"""The screen Quantize: measure a model once, slide a budget along its curve, make the model, see what it measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import quote, urlencode

from nicegui import background_tasks, ui
from nicegui.elements.mixins.value_element import ValueElement
from nicegui.events import ValueChangeEventArguments

from optiq.errors import OptiqError
from optiq.lab.ask import ask
from optiq.lab.curve import of_weights
from optiq.lab.jobs.job import OPEN, RESUMABLE, Job
from optiq.lab.jobs.log import Log
from optiq.lab.outputs import Output
from optiq.lab.pages.frame import opened
from optiq.lab.parts import charts
from optiq.lab.parts.command import CommandBox
from optiq.lab.parts.elements import box, button, figures, folded, link_button, note, paragraph, say, section, size, table, words
from optiq.lab.parts.jobview import JobView
from optiq.lab.parts.picker import ModelPicker
from optiq.lab.parts.sensitivity import sensitivity
from optiq.lab.parts.slider import Slider
from optiq.lab.quantizing import CONVERT, MEASURE, Choices, Outcome, Study, outcomes
from optiq.lab.text import line
from optiq.lab.workbench import Workbench

ABOUT = "Spend the bits where they matter: measure how much every tensor matters, choose a budget, and see what it cost."


def register(bench: Workbench) -> None:
    """Put the screen at its address."""

    @ui.page("/quantize")
    async def quantize(model: str = "") -> None:
        screen = await opened(bench, "Quantize", ABOUT, lambda: _Screen(bench, model))
        screen.picker.renew()
        await screen.open(model)


class _Screen:
    """One visit: the model, the choices, and the parts that follow from them."""

    def __init__(self, bench: Workbench, model: str) -> None:
        self.bench, self.choices = bench, Choices()
        self.study: Study | None = None
        self.budget = 5.0
        self.fields: dict[str, ValueElement[Any]] = {}
        with section("Model"):
            self.picker = ModelPicker(
                bench.library, "Checkpoint, its path or hub id", model, accept=lambda one: not one.quantized, chosen=self.open
            )
            self._form()
        self.body = box("stack")

    def _form(self) -> None:
        with folded("How it is measured and coded"), box("grid"):
            fields = (("candidate_bits", "Widths to choose from"), ("group_sizes", "Group sizes"))
            for name, label in fields:
                self.fields[name] = ui.input(label, value=getattr(self.choices, name), on_change=self._chosen(name))
            for name, label, known in (
                ("sensitivity", "Sensitivity", ["fisher", "kl", "static"]),
                ("encoder", "Encoder", ["gptq", "search", "rtn"]),
            ):
                chosen = ui.select(known, label=label, value=getattr(self.choices, name), on_change=self._chosen(name))
                chosen.props["aria-label"] = label
                self.fields[name] = chosen
            rows = ui.number("Calibration rows per domain", value=self.choices.samples, min=1, on_change=self._chosen("samples"))
            self.fields["samples"] = rows
            for field in self.fields.values():
                field.props("outlined dense options-dense")

    def _chosen(self, name: str) -> Callable[[ValueChangeEventArguments[Any]], None]:
        def keep(event: ValueChangeEventArguments[Any]) -> None:
            value = event.value
            if value:
                setattr(self.choices, name, int(value) if name == "samples" else str(value))
                self._commands()

        return keep

    def _commands(self) -> None:
        """Show the commands as the choices are now."""
        if self.study is None:
            return
        if hasattr(self, "measure_box"):
            self.measure_box.show(self.study.measure_words(self.choices))
        if hasattr(self, "convert_box"):
            output = self._output()
            self.convert_box.show(self.study.convert_words(self.choices, self.budget, output.path), output.remark)

    def _output(self) -> Output:
        """Where a model of this budget would be written."""
        assert self.study is not None
        return self.bench.outputs.free("models", self.study.output_name(self.budget))

    async def open(self, model: str) -> None:
        """Show what there is for a model, and what can be done next."""
        self.body.clear()
        if not model:
            return
        self.study = Study.of(self.bench.place, model)
        self._remember()
        with self.body:
            with section("Sensitivity"):
                self._sensitivity()
            self.rest = box("stack")
        if self.study.table.exists():
            await self._budget()

    def _remember(self) -> None:
        """Take up the choices that the table was measured with, so that conversions begin where it ended."""
        assert self.study is not None
        measured = self.study.jobs(self.bench.queue, MEASURE)
        for name, value in (measured[0].facts.get("choices") or {}).items() if measured else ():
            self.fields[name].set_value(value)

    def _sensitivity(self) -> None:
        assert self.study is not None
        study = self.study
        if study.table.exists():
            try:
                sensitivity(study.table)
            except OptiqError as error:
                note(error, "error")
            with folded("Measure again"):
                self._measure()
            return
        earlier = study.jobs(self.bench.queue, MEASURE)
        if earlier and earlier[0].state in OPEN:
            JobView(self.bench.queue, earlier[0].id, ended=self._measured)
            return
        paragraph("Measured once per model: how much each tensor's rounding changes what the model says. Every budget uses it.")
        self._measure()
        if earlier:
            JobView(self.bench.queue, earlier[0].id, ended=self._measured)

    def _measure(self) -> None:
        assert self.study is not None
        self.measure_box = CommandBox(self.study.measure_words(self.choices))
        button("Measure", self._start_measure, "main")

    async def _start_measure(self) -> None:
        assert self.study is not None
        model = self.study.model
        facts = {"model": model, "what": MEASURE, "choices": asdict(self.choices)}
        if self._queue(f"Measure {self.picker_title()}", self.study.measure_words(self.choices), facts):
            self.body.clear()
            with self.body:
                with section("Sensitivity"):
                    JobView(self.bench.queue, self.study.jobs(self.bench.queue, MEASURE)[0].id, ended=self._measured)
                self.rest = box("stack")

    def picker_title(self) -> str:
        """The model's name for people."""
        found = self.bench.library.find(self.picker.value)
        return found.title if found else line(self.picker.value, 60)

    def _measured(self, job: Job, log: Log) -> None:
        """A task of its own: a timer would end with the view that it stands in, and that is what `open` clears."""
        background_tasks.create(self.open(str(job.facts["model"])))

    def _queue(self, title: str, command: list[str], facts: Mapping[str, Any]) -> bool:
        try:
            job = self.bench.queue.add(title, command, facts)
        except OptiqError as error:
            say(error, "negative")
            return False
        say(f"job {job.id}: {title}")
        return True

    async def _budget(self) -> None:
        """The slider over the curve; the curve is made where it is missing."""
        assert self.study is not None
        study = self.study
        with self.rest, section("Budget"):
            place = box("stack")
        try:
            if not study.curve_is_current:
                with place:
                    paragraph("Solving the curve …", "soft")
                await ask(study.curve_words())
            self.curve = of_weights(study.curve)
        except OptiqError as error:
            place.clear()
            with place:
                note(error, "error")
            return
        place.clear()
        with place:
            self._slider()
        with self.rest, section("Results"):
            self.results = box("stack")
        self._show_results()

    def _slider(self) -> None:
        assert self.study is not None
        low, high = self.curve.points[0].bits, self.curve.points[-1].bits
        self.budget = min(max(self.budget, low), high)
        self.figures = figures([("size", ""), ("bits per weight", ""), ("predicted KL", "")])
        ends = math.ceil(100 * low) / 100, math.floor(100 * high) / 100
        Slider(*ends, 0.01, round(self.budget, 2), "Budget in bits per weight", self._slid)
        self.picture = charts.Chart(self._picture(), "Predicted KL over bits per weight, with the chosen budget")
        with folded("The command behind the curve"):
            CommandBox(self.study.curve_words())
        self.convert_box = CommandBox()
        button("Quantize", self._start_convert, "main")
        self._follow()

    def _slid(self, budget: float) -> None:
        self.budget = budget
        self._follow()
        point = self.curve.between(self.budget)
        mark = {"id": "mark", "data": [{"value": [point.bits, point.kl], "name": "this budget"}]}
        self.picture.merge({"series": [mark]})

    def _follow(self) -> None:
        """Figures and command for the budget as it is."""
        point = self.curve.between(self.budget)
        self.figures["size"].set_text(size(point.bytes))
        self.figures["bits per weight"].set_text(f"{point.bits:.3f}")
        self.figures["predicted KL"].set_text(f"{point.kl:.5f} nats")
        self._commands()

    def _picture(self) -> dict[str, object]:
        point = self.curve.between(self.budget)
        curve = {**charts.line_series([(one.bits, one.kl) for one in self.curve.points], "predicted"), "id": "curve"}
        mark = {**charts.mark_series([(point.bits, point.kl, "this budget")]), "id": "mark", "name": "this budget"}
        assert self.study is not None
        measured = [(one.bpw, one.measured, "measured") for one in outcomes(self.study, self.bench.queue) if one.measured]
        made = {**charts.mark_series(measured, charts.INK, 9), "id": "measured", "name": "measured"}
        y = charts.axis("KL, nats per token", "log", nameGap=64)
        return charts.options(charts.axis("bits per weight"), y, [curve, mark, made], grid=charts.WIDE_GRID, legend=charts.LEGEND)

    async def _start_convert(self) -> None:
        assert self.study is not None
        output = self._output()
        words_ = self.study.convert_words(self.choices, self.budget, output.path)
        facts = {"model": self.study.model, "what": CONVERT, "output": str(output.path)}
        if self._queue(f"Quantize {self.picker_title()} to {self.budget:.2f} bits", words_, facts):
            self._show_results()
            self._commands()

    def _converted(self, job: Job, log: Log) -> None:
        self.picture.draw(self._picture())
        self._show_results()
        self._commands()

    def _show_results(self) -> None:
        assert self.study is not None
        self.results.clear()
        jobs = self.study.jobs(self.bench.queue, CONVERT)
        shown = [job for number, job in enumerate(jobs) if job.state in OPEN or (number == 0 and job.state in RESUMABLE)]
        found = outcomes(self.study, self.bench.queue)
        with self.results:
            for job in reversed(shown):
                JobView(self.bench.queue, job.id, ended=self._converted)
            if found:
                head = ["model", "size", "bits", "KL predicted", "KL measured", "actions"]
                table(head, [self._result(one) for one in found], right=(1, 2, 3, 4), label="Results")
                if len(found) > 1:
                    sides = {"model": self.study.model, "other": found[0].output, "third": found[1].output}
                    link_button("Compare the newest two with their original", f"/compare?{urlencode(sides)}")
            elif not shown:
                paragraph("Models that are made here appear here, what was measured beside what was predicted.", "soft")

    def _result(self, one: Outcome) -> list[object]:
        assert self.study is not None
        name = quote(one.output, safe="")

        title = line(one.output.rpartition("/")[2])
        sides = urlencode({"model": self.study.model, "other": one.output})
        pair = urlencode({"model": one.output, "baseline": self.study.model})

        def actions() -> None:
            with box("bar"):
                link_button("Compare", f"/compare?{sides}", f"Compare {title} with its original")
                link_button("Evaluate", f"/evaluate?{pair}", f"Evaluate {title} against its original")
                link_button("Fine-tune", f"/fine-tune?model={name}", f"Fine-tune {title}")
                link_button("Serve", f"/server?model={name}", f"Serve {title}")

        def where() -> None:
            words(title, "strong")

        def far() -> None:
            words("–" if one.measured is None else f"{one.measured:.5f}")
            if one.interval:
                ui.element("br")
                words(f"{one.interval[0]:.5f} to {one.interval[1]:.5f}", classes="soft small")

        predicted = "–" if one.predicted is None else f"{one.predicted:.5f}"
        return [where, size(one.bytes), f"{one.bpw:.3f}", predicted, far, actions]
