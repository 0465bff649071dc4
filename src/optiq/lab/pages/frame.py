"""What stands around every page: menu, theme, the number of open jobs, the heading. Pages fill its inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from nicegui import ui

from optiq.lab.jobs.job import ALIVE, OPEN
from optiq.lab.pages.navigation import SCREENS
from optiq.lab.parts.elements import box, heading, paragraph, words
from optiq.lab.workbench import Workbench

T = TypeVar("T")
THEMES = {"auto": None, "light": False, "dark": True}
NEXT_THEME = {"auto": "light", "light": "dark", "dark": "auto"}
THEME_ICONS = {"auto": "brightness_auto", "light": "light_mode", "dark": "dark_mode"}
COUNT_S = 1.0
BLUE, AMBER = "#1f6fb2", "#8a5a00"


@contextmanager
def frame(bench: Workbench, title: str, about: str = "", wide: bool = False) -> Iterator[ui.element]:
    """A page under the heading ``title``, with a sentence on what it does.

    Args:
        wide: use the whole width, without a column for reading.
    """
    ui.page_title(f"{title} · optiq lab")
    ui.colors(primary=BLUE, info=BLUE, secondary=AMBER, warning=AMBER, negative="#b3261e", positive="#1b7a43")
    with box("shell"):
        words("Skip to the content", "a", "skip").props('href="#content"')
        with ui.element("header").classes("top"):
            _menu(bench, title)
        with ui.element("div").classes("inside wide" if wide else "inside").props('id="content" tabindex="-1"') as inside:
            heading(title, 1)
            if about:
                paragraph(about, "soft about")
            yield inside


async def opened(bench: Workbench, title: str, about: str, draw: Callable[[], T], wide: bool = False) -> T:
    """A page whose frame holds what ``draw`` draws; it is with the user, and the models are read, when this returns."""
    with frame(bench, title, about, wide):
        drawn = draw()
    await ui.context.client.connected()
    await bench.library.ready()
    return drawn


def _menu(bench: Workbench, title: str) -> None:
    with box("brand spread"):
        words("optiq lab", "a", "brand-name").props('href="/"')
        _theme(bench)
    with ui.element("nav").props('aria-label="Screens"'):
        for screen in SCREENS:
            with ui.element("a").classes("entry") as entry:
                entry.props["href"] = screen.path
                if screen.title == title:
                    entry.props["aria-current"] = "page"
                ui.icon(screen.icon).props('aria-hidden="true"')
                words(screen.title)
                if screen.title == "Jobs":
                    _count(bench)


def _count(bench: Workbench) -> None:
    """How many jobs run or wait, renewed."""
    badge = words("", "span", "count")

    def renew() -> None:
        found = bench.queue.store.among(OPEN)
        running = sum(job.state in ALIVE for job in found)
        text = f"{len(found)}" if found else ""
        if badge.text != text:
            badge.set_text(text)
            badge.props["aria-label"] = f"{running} running, {len(found) - running} waiting" if found else ""

    renew()
    ui.timer(COUNT_S, renew)


def _theme(bench: Workbench) -> None:
    name = bench.preferences.get("theme", "auto")
    name = name if name in THEMES else "auto"
    dark = ui.dark_mode(THEMES[name])

    def turn() -> None:
        chosen = NEXT_THEME[bench.preferences.get("theme", "auto")]
        bench.preferences.set("theme", chosen)
        dark.set_value(THEMES[chosen])
        switch.props["icon"] = THEME_ICONS[chosen]
        switch.props["aria-label"] = f"Theme: {chosen}. Change it"

    switch = ui.button(icon=THEME_ICONS[name], on_click=turn, color=None).props("flat round dense")
    switch.props["aria-label"] = f"Theme: {name}. Change it"
