"""The screen Models: what is on disk, what the hub has for this machine, and what one can do with either."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

from nicegui import ui

from optiq.errors import OptiqError
from optiq.lab.ask import ask
from optiq.lab.library import Model
from optiq.lab.pages.frame import frame
from optiq.lab.parts.answer import answer
from optiq.lab.parts.command import CommandBox
from optiq.lab.parts.elements import box, button, heading, link_button, note, paragraph, say, section, size, table, words
from optiq.lab.parts.inspection import inspection
from optiq.lab.text import line
from optiq.lab.workbench import Workbench

ABOUT = "The models on this disk, and those that fit this machine."
KINDS = {"optiq": "quantized by optiq", "mlx": "quantized", "checkpoint": "checkpoint", "broken": "broken"}


def register(bench: Workbench) -> None:
    """Put the screen at its address."""

    @ui.page("/")
    async def models() -> None:
        with frame(bench, "Models", ABOUT):
            shown = section("On this disk")
            with shown:
                place = box("stack")
            opened = box("stack")
            with section("From the hub"):
                hub = box("stack")
        await ui.context.client.connected()
        with opened:
            screen = _Screen(bench, place, opened)
        await screen.start()
        await _hub(bench, hub)


class _Screen:
    """The list of models with its filter, and below it what was opened last."""

    def __init__(self, bench: Workbench, place: ui.element, opened: ui.element) -> None:
        self.bench, self.place, self.opened = bench, place, opened
        self.wanted = ""
        self.seen: list[Model] | None = None

    async def start(self) -> None:
        """Fill the list, and keep it true."""
        with self.place:
            with box("spread"):
                field = ui.input("Search", on_change=lambda event: self._filter(str(event.value or ""))).props(
                    "outlined dense clearable"
                )
                field.props["aria-label"] = "Search the models on this disk"
                button("Read the disk again", self._again, "quiet", icon="refresh")
            self.rows = box("stack")
            CommandBox(self.bench.library.words)
        with self.rows:
            paragraph("Reading …", "soft")
        await self.bench.library.ready()
        self._renew()
        ui.timer(1.0, self._renew)

    async def _again(self) -> None:
        await self.bench.library.refresh()
        self.seen = None
        self._renew()

    def _filter(self, text: str) -> None:
        self.wanted = text.lower()
        self.seen = None
        self._renew()

    def _renew(self) -> None:
        library = self.bench.library
        if self.seen == library.models:
            return
        self.seen = list(library.models)
        self.rows.clear()
        with self.rows:
            if library.problem:
                note(library.problem, "error")
            rows = [self._row(model) for model in self.seen if self.wanted in f"{model.name} {model.kind}".lower()]
            if rows:
                table(["model", "kind", "size", "bits", "actions"], rows, right=(2, 3), label="Models on this disk")
            else:
                paragraph("No model here yet: download one below, or start `optiq lab` with a folder of models.", "soft")

    def _row(self, model: Model) -> list[Any]:
        bits = "–" if model.bpw is None else f"{model.bpw:.2f}"

        def name() -> None:
            words(model.title, "strong")
            ui.element("br")
            words(line(model.path, 200), "span", "soft small")
            if model.problem:
                note(model.problem, "warning")

        return [name, KINDS.get(model.kind, model.kind), size(model.bytes), bits, partial(self._actions, model)]

    def _actions(self, model: Model) -> None:
        with box("bar"):
            if model.kind != "broken":
                button("Inspect", partial(self._inspect, model), "quiet", label=f"Inspect {model.title}")
                if not model.quantized:
                    link_button("Quantize", f"/quantize?model={quote(model.name, safe='')}", f"Quantize {model.title}")
                link_button("Serve", f"/server?model={quote(model.name, safe='')}", f"Serve {model.title}")
            button("Delete", partial(self._delete, model), "danger", label=f"Delete {model.title}")

    async def _inspect(self, model: Model) -> None:
        command = ["inspect", model.path]
        report = await answer(self.opened, command, "Reading the headers …")
        if report is None:
            return
        with self.opened, section(model.title):
            inspection(report)
            CommandBox(command)
            if self.opened.client.has_socket_connection:
                ui.run_javascript(f"getHtmlElement({self.opened.id}).scrollIntoView({{block: 'start'}})")

    def _delete(self, model: Model) -> None:
        command = ["rm", model.name, "--yes"]

        def carry_out() -> None:
            dialog.close()
            _queue(self.bench, f"Delete {model.title}", command)

        with ui.dialog() as dialog, box("dialog stack"):
            heading(f"Delete {model.title}?")
            paragraph(f"{size(model.bytes)} at {line(model.path)} will be gone. Nothing can bring them back.")
            CommandBox(command)
            with box("bar"):
                button("Keep it", dialog.close, "plain")
                button("Delete", carry_out, "danger", label=f"Really delete {model.title}")
        dialog.open()


def _queue(bench: Workbench, title: str, command: list[str]) -> None:
    try:
        job = bench.queue.add(title, command)
    except OptiqError as error:
        say(error, "negative")
        return
    say(f"job {job.id}: {title}")


async def _hub(bench: Workbench, place: ui.element) -> None:
    """Reference models with whether they fit, and any other by its id."""
    with place:
        paragraph("Any model by its id, for instance Qwen/Qwen3.5-0.8B; a stopped download goes on where it was.")
        with box("bar"):
            wanted = ui.input("Hub id").props("outlined dense").classes("picker")
            button("Download", lambda: _pull(bench, str(wanted.value or "").strip()), "main")
        command = CommandBox(["pull", "Qwen/Qwen3.5-0.8B"])
        wanted.on_value_change(lambda event: command.show(["pull", str(event.value or "").strip() or "Qwen/Qwen3.5-0.8B"]))
        heading("Search the hub", 3)
        _Search(bench)
        heading("Reference models", 3)
        waiting = paragraph("Asking …", "soft")
    try:
        found = await ask(["models"])
    except OptiqError as error:
        waiting.set_text(line(error))
        return
    waiting.set_text(f"This machine has {size(found['memory_bytes'])} for a model.")
    with place:
        rows = [_reference(bench, row) for row in found["models"]]
        table(["model", "size", "GSM8K", "best for", "here", "actions"], rows, right=(1, 2), label="Reference models")


class _Search:
    """Models of the hub by a part of their names; the one thing here that asks another machine, and only on demand."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        with box("bar"):
            self.text = ui.input("Part of a name", on_change=self._show).props("outlined dense").classes("picker")
            self.text.on("keydown.enter", self._ask)
            button("Search", self._ask, "main", label="Search the hub")
        self.command = CommandBox(self.words())
        self.found = box("stack")

    def words(self) -> list[str]:
        """What is asked."""
        return ["models", f"--search={str(self.text.value or '').strip() or 'TEXT'}"]

    def _show(self) -> None:
        self.command.show(self.words())

    async def _ask(self) -> None:
        if not str(self.text.value or "").strip():
            say("write a part of a model's name first", "warning")
            return
        found = await answer(self.found, self.words(), "Asking the hub …")
        if found is None:
            return
        rows = found["models"]
        with self.found:
            if rows:
                head = ["model", "size", "downloads", "here", "actions"]
                table(head, [self._row(row) for row in rows], right=(1, 2), label="Models on the hub")
            else:
                paragraph("The hub has no such model with safetensors files.", "soft")

    def _row(self, row: dict[str, Any]) -> list[Any]:
        name = str(row["id"])
        here = "–" if row["fits"] is None else "fits" if row["fits"] else f"needs {size(row['needed_bytes'])}"
        get: Callable[[], None] = partial(_pull, self.bench, name)
        action = partial(button, "Download", get, "quiet", label=f"Download {name}")
        return [name, size(row["size_bytes"]), f"{row['downloads']:,}", here, action]


def _reference(bench: Workbench, row: dict[str, Any]) -> list[Any]:
    fits = "fits" if row["fits"] else f"needs {size(row['needed_bytes'])}"
    get: Callable[[], None] = partial(_pull, bench, str(row["id"]))
    return [
        row["id"],
        size(row["size_bytes"]),
        f"{row['gsm8k']:g} %",
        row["best_for"],
        fits,
        lambda: button("Download", get, "quiet", label=f"Download {row['id']}"),
    ]


def _pull(bench: Workbench, name: str) -> None:
    if not name:
        say("write the model's id first, owner/name", "warning")
        return
    _queue(bench, f"Download {name}", ["pull", name])
