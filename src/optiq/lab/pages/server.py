"""The screen Server: the flags of `optiq serve` as a form, what the server measures, its adapters, and how to ask it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import ui

from optiq.errors import OptiqError
from optiq.lab import client
from optiq.lab.client import Served
from optiq.lab.pages.frame import opened
from optiq.lab.parts.command import CommandBox
from optiq.lab.parts.elements import box, button, figures, folded, heading, link_button, paragraph, say, section, size, words
from optiq.lab.parts.jobview import JobView
from optiq.lab.parts.picker import ModelPicker
from optiq.lab.serving import Form, snippets
from optiq.lab.text import line
from optiq.lab.tuning import adapter_folders
from optiq.lab.workbench import Workbench
from optiq.models.families import USES

ABOUT = "One model over HTTP, for the chat here and for OpenAI's and Anthropic's clients on this machine."
POLL_S = 1.0
LIVE = ("tokens per second", "requests running", "waiting", "tokens written", "prompt tokens from cache", "memory of caches")


def register(bench: Workbench) -> None:
    """Put the screen at its address."""

    @ui.page("/server")
    async def server(model: str = "", adapter: str = "", kv: str = "") -> None:
        adapters = [adapter] if adapter else []
        form = Form(model=model, kv_config=kv, adapters=adapters, adapter_dir=str(bench.place.folder("adapters")))
        screen = await opened(bench, "Server", ABOUT, lambda: _Screen(bench, form))
        screen.picker.renew()


class _Screen:
    """The form, and what runs."""

    def __init__(self, bench: Workbench, form: Form) -> None:
        self.bench, self.form = bench, form
        self.shown: tuple[object, ...] = ("nothing yet",)
        self.before: tuple[float, float] | None = None
        self.running = box("stack")
        with section("Start a server"):
            self._fields()
        ui.timer(POLL_S, self._renew)

    def _fields(self) -> None:
        self.picker = ModelPicker(self.bench.library, "Model", self.form.model, chosen=partial(self._set, "model"))
        with box("grid"):
            self._number("Port, 0 for a free one", "port")
            self._select("Thinking", "thinking", {"": "the model's own default", "on": "on", "off": "off"})
            self._select("Sampling preset", "preset", {"": "the model's own", **{use: use for use in USES}})
            self._select("Tools that replies may use", "tools", {"": "none", "python": "Python, in a sandbox"})
            self._select("Key/value cache", "kv", {"": "16 bits", "8": "8 bits", "6": "6 bits", "4": "4 bits", "3": "3 bits"})
        ui.checkbox("Draft tokens with the model's own head (--mtp)", on_change=lambda event: self._set("mtp", bool(event.value)))
        with folded("More flags"), box("grid"):
            self._text("Context, tokens", "context")
            self._text("Longest reply, tokens", "max_tokens")
            self._text("Requests at once", "max_concurrent")
            self._text("Memory for caches, GB", "memory_gb")
            self._text("Cache recipe (kv_config.json)", "kv_config")
            self._select("Adapters to mount", "adapters", self._adapters(), several=True)
        self.command = CommandBox(self._words())
        button("Start", self._start, "main")

    def _adapters(self) -> dict[str, str]:
        found = [*map(str, adapter_folders(self.bench.place)), *self.form.adapters]
        return {path: line(Path(path).name) for path in found}

    def _set(self, name: str, value: Any) -> None:
        setattr(self.form, name, value)
        self.command.show(self._words())

    def _words(self) -> list[str]:
        """The command as it is shown; before a model is chosen a word stands for it."""
        return self.form.words() if self.form.model else replace(self.form, model="MODEL").words()

    def _text(self, label: str, name: str) -> None:
        field = ui.input(label, value=getattr(self.form, name), on_change=lambda event: self._set(name, str(event.value or "")))
        field.props("outlined dense")

    def _number(self, label: str, name: str) -> None:
        field = ui.number(label, value=getattr(self.form, name), min=0, max=65535, format="%d")
        field.on_value_change(lambda event: self._set(name, int(event.value or 0))).props("outlined dense")

    def _select(self, label: str, name: str, known: Mapping[str, str], several: bool = False) -> None:
        field = ui.select(dict(known), label=label, value=getattr(self.form, name), multiple=several)
        field.on_value_change(lambda event: self._set(name, event.value or ([] if several else "")))
        field.props("outlined dense options-dense").props["aria-label"] = label

    def _start(self) -> None:
        if not self.form.model:
            say("choose a model first", "warning")
            return
        try:
            job = self.bench.queue.add(f"Serve {line(Path(self.form.model).name)}", self.form.words(), {"model": self.form.model})
        except OptiqError as error:
            say(error, "negative")
            return
        say(f"job {job.id} starts")

    async def _renew(self) -> None:
        """Draw what runs where that has changed, and its numbers."""
        up, coming = client.served(self.bench.queue), client.starting(self.bench.queue)
        if (up, coming) != self.shown:
            self.shown = (up, coming)
            self.before = None
            self.running.clear()
            with self.running:
                self._state(up, coming)
        if up is not None:
            await self._numbers(up)

    def _state(self, up: Served | None, coming: int | None) -> None:
        if coming is not None:
            with section("Starting"):
                JobView(self.bench.queue, coming)
        if up is None:
            return
        with section("Running"):
            JobView(self.bench.queue, up.job)
            with box("bar"):
                words(up.url, "strong")
                link_button("Open the chat", "/chat")
            self.figures = figures([(name, "–") for name in LIVE])
            heading("Adapters", 3)
            self.adapters = box("stack")
        ui.timer(0.1, partial(self._show_adapters, up), once=True)
        with section("How to ask it"):
            for name, text in snippets(up.url, up.model).items():
                with folded(name):
                    CommandBox(title=name).show_text(text)

    async def _show_adapters(self, up: Served) -> None:
        try:
            found = await client.get(up.url, "/v1/adapters")
        except OptiqError as error:
            found = {"mounted": [], "available": []}
            say(error, "warning")
        self.adapters.clear()
        with self.adapters:
            if not found["mounted"] and not found["available"]:
                paragraph("None yet: the screen Fine-tune makes them.", "soft")
            for name in dict.fromkeys([*found["mounted"], *found["available"]]):
                mounted = name in found["mounted"]
                with box("bar"):
                    words(line(name), "strong")
                    words("mounted" if mounted else "on disk", classes="soft")
                    button("Unmount" if mounted else "Mount", partial(self._turn, up, name, mounted), "quiet")

    async def _turn(self, up: Served, name: str, mounted: bool) -> None:
        try:
            if mounted:
                await client.delete(up.url, f"/v1/adapters/{name}")
            else:
                await client.post(up.url, "/v1/adapters", {"name": name})
        except OptiqError as error:
            say(error, "negative")
        await self._show_adapters(up)

    async def _numbers(self, up: Served) -> None:
        try:
            found = await client.metrics(up.url)
        except OptiqError:
            return
        if self.shown != (up, client.starting(self.bench.queue)):
            return
        now = time.monotonic()
        engine = _sum(found, "optiq_engine_tokens_total")
        speed = (engine - self.before[1]) / max(now - self.before[0], 1e-6) if self.before else 0.0
        self.before = (now, engine)
        running = found.get("optiq_requests_now", {})
        memory = found.get("optiq_engine_memory_bytes", {})
        values = (
            f"{max(speed, 0.0):.0f}",
            f"{running.get('reading', 0) + running.get('decoding', 0):.0f}",
            f"{running.get('waiting', 0):.0f}",
            f"{engine:,.0f}",
            f"{_sum(found, 'optiq_cached_tokens_total'):,.0f} of {_sum(found, 'optiq_prompt_tokens_total'):,.0f}",
            size(memory.get("cache", 0) + memory.get("prefix", 0)),
        )
        for name, value in zip(LIVE, values, strict=True):
            self.figures[name].set_text(value)


def _sum(found: Mapping[str, Mapping[str, float]], name: str) -> float:
    return sum(found.get(name, {}).values())
