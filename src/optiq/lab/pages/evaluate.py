"""The screen Evaluate: models and tasks, the run, the paired report, and scores over time."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from nicegui import ui

from optiq.errors import OptiqError
from optiq.evals.tasks import TASKS
from optiq.lab import client
from optiq.lab.evaluating import CAPABILITY, EVALUATE, Form, Report, percent, reports, score
from optiq.lab.jobs.job import Job
from optiq.lab.jobs.log import Log
from optiq.lab.pages.frame import opened
from optiq.lab.parts import charts
from optiq.lab.parts.elements import box, button, folded, paragraph, section, table, words
from optiq.lab.parts.fields import Fields
from optiq.lab.parts.jobform import JobForm, Order
from optiq.lab.parts.picker import ModelPicker
from optiq.lab.parts.report import COLOURS, report_view
from optiq.lab.text import line
from optiq.lab.workbench import Workbench

ABOUT = "Score models on fixed tasks; with a second one, find out whether the two really differ."
POLL_S = 2.0


def register(bench: Workbench) -> None:
    """Put the screen at its address."""

    @ui.page("/evaluate")
    async def evaluate(model: str = "", baseline: str = "") -> None:
        screen = await opened(bench, "Evaluate", ABOUT, lambda: _Screen(bench, Form(model=model, baseline=baseline)))
        await screen.start()


class _Screen:
    """One visit: the form, the run, the report that is open, the history."""

    def __init__(self, bench: Workbench, form: Form) -> None:
        self.bench, self.form = bench, form
        self.up: client.Served | None = None
        self.job: JobForm | None = None
        with section("Models and tasks"):
            self._models()
            self._tasks()
            self.job = JobForm(bench.queue, EVALUATE, self._order, form.missing, "Evaluate", ended=self._ended)
        self.report = box("stack")
        with section("History"):
            self.history = box("stack")
        self._show_history(first=True)

    def _models(self) -> None:
        library = self.bench.library
        self.pickers = box("grid")
        with self.pickers:
            self.files = [
                ModelPicker(library, "Model", self.form.model, chosen=partial(self._set, "model")),
                ModelPicker(library, "Compare with", self.form.baseline, chosen=partial(self._set, "baseline")),
                ModelPicker(library, "True model, for KL and perplexity", chosen=partial(self._set, "reference")),
            ]
        self.serving = box("stack")
        self.serving.set_visibility(False)
        with self.serving:
            self.asked = ui.checkbox(
                "Ask the running server: its model, or an adapter", on_change=lambda e: self._serve(bool(e.value))
            )
            self.names = ui.select({}, label="Served model", on_change=lambda event: self._set("model", str(event.value or "")))
            self.names.props("outlined dense options-dense").classes("picker").props["aria-label"] = "Served model"
            self.names.set_visibility(False)

    def _tasks(self) -> None:
        fields = Fields(self.form, self._changed)
        with box("grid"):
            fields.select("Tasks; all where none is chosen", "tasks", {name: name for name in TASKS.names()}, several=True)
            fields.text("Samples per task", "samples", "the protocol's number")
            fields.text("Folder with the tasks' data", "data", "downloaded, except HashHop's")
        with folded("More"):
            with box("grid"):
                fields.text("Options of tasks", "options", "gsm8k.shots=0 hashhop.characters=800")
                fields.text("Bits of the key/value cache", "kv_bits", "16")
                fields.text("Cache recipe (kv_config.json)", "kv_config", "none")
            with box("bar"):
                fields.check("Let the model think first", "thinking")
                fields.check("Write the table into the model's card", "card")

    async def start(self) -> None:
        """Offer what the disk and the server have now."""
        for picker in self.files:
            picker.renew()
        await self._watch_server()
        ui.timer(POLL_S, self._watch_server)

    async def _watch_server(self) -> None:
        """Offer the server where one is up."""
        up = client.served(self.bench.queue)
        if up == self.up:
            return
        self.up = up
        names: dict[str, str] = {}
        if up is not None:
            try:
                found = await client.get(up.url, "/v1/models")
                names = {str(row["id"]): line(row["id"], 80) for row in found["data"]}
            except (OptiqError, KeyError, TypeError):
                self.up = None
        self.names.set_options(names)
        self.serving.set_visibility(bool(names))
        if not names and self.form.served:
            self.asked.set_value(False)

    def _serve(self, asked: bool) -> None:
        """Turn between files and the server."""
        self.form.served = f"{self.up.url}/v1" if asked and self.up is not None else ""
        self.pickers.set_visibility(not self.form.served)
        self.names.set_visibility(bool(self.form.served))
        self._set("model", str(self.names.value or "") if self.form.served else self.files[0].value)

    def _set(self, name: str, value: str) -> None:
        setattr(self.form, name, value)
        self._changed()

    def _changed(self) -> None:
        if self.job is not None:
            self.job.show()

    def _order(self) -> Order:
        output = self.bench.outputs.free("evals", self.form.output_name)
        title = f"Evaluate {line(self.form.model.rstrip('/').rpartition('/')[2], 60)}"
        return Order(title, self.form.words(output.path), {"model": self.form.model}, output)

    def _ended(self, job: Job, log: Log) -> None:
        self._changed()
        self._show_history(first=True)

    def _show_history(self, first: bool = False) -> None:
        found = reports(self.bench.place)
        self.history.clear()
        with self.history:
            if not found:
                paragraph("Reports of finished runs appear here.", "soft")
                return
            if len(found) > 1:
                charts.Chart(_over_time(found), "Capability scores over time")
            rows = [self._row(one) for one in found]
            table(["when", "models", "tasks", "mean of its tasks", "finding", "actions"], rows, label="History")
        if first:
            self._open(found[0], scroll=False)

    def _row(self, report: Report) -> list[object]:
        pair = report.pair(report.models[0], CAPABILITY)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(report.when))

        def actions() -> None:
            button("Open", partial(self._open, report), "quiet", label=f"Open the report on {report.title} of {when}")

        mean = percent(score(report.models[0], CAPABILITY))
        return [when, report.title, ", ".join(report.tasks), mean, pair["finding"] if pair else "–", actions]

    def _open(self, report: Report, scroll: bool = True) -> None:
        self.report.clear()
        with self.report, section(report.title):
            words(time.strftime("%Y-%m-%d %H:%M", time.localtime(report.when)), classes="soft")
            report_view(report)
        if scroll and self.report.client.has_socket_connection:
            ui.run_javascript(f"getHtmlElement({self.report.id}).scrollIntoView({{block: 'start'}})")


def _over_time(found: list[Report]) -> dict[str, Any]:
    """The mean of each report's first model, a line per model and set of tasks, as other means are not comparable."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for report in reversed(found):
        name = f"{report.models[0]['label']} ({', '.join(report.tasks)})"
        lines.setdefault(name, []).append((report.when * 1000, 100 * score(report.models[0], CAPABILITY)["value"]))
    series = [
        charts.line_series(points, name, COLOURS[n % len(COLOURS)], dots=True) for n, (name, points) in enumerate(lines.items())
    ]
    legend = {**charts.LEGEND, "type": "scroll"}
    y = charts.axis("mean, %", min=0, max=100, scale=False, nameGap=40)
    return charts.options(charts.axis("", "time"), y, series, legend=legend)
