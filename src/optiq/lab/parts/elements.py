"""Elements of text: headings, paragraphs, facts, tables, notes. Every foreign word passes `text.plain` here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from optiq.files import size_text
from optiq.lab.text import line, plain


def words(text: object, tag: str = "span", classes: str = "") -> TextElement:
    """Text in an element of any kind; shown as it stands, line breaks only where the class says so."""
    return TextElement(tag=tag, text=plain(text)).classes(classes)


def heading(text: object, level: int = 2) -> TextElement:
    """A heading; each page has one of level 1, made by its frame."""
    return TextElement(tag=f"h{level}", text=line(text))


def paragraph(text: object, classes: str = "") -> TextElement:
    """A paragraph."""
    return words(text, "p", classes)


def note(text: object, kind: str = "info") -> ui.element:
    """A remark in a box; ``kind`` is info, good, warning or error. Errors are read out by screen readers."""
    box = ui.element("div").classes(f"note note-{kind}")
    if kind in ("warning", "error"):
        box.props('role="alert"')
    with box:
        words(text, "span", "lines")
    return box


@contextmanager
def section(title: str, classes: str = "") -> Iterator[ui.element]:
    """A part of a page under its heading."""
    with ui.element("section").classes(f"card {classes}") as box:
        heading(title)
        yield box


def box(classes: str, tag: str = "div") -> ui.element:
    """A container with classes of `static/lab.css`: bar, stack, grid, spread."""
    return ui.element(tag).classes(classes)


@contextmanager
def folded(title: str, open_: bool = False) -> Iterator[ui.element]:
    """What is shown on demand."""
    with ui.element("details").classes("folded") as outer:
        if open_:
            outer.props("open")
        words(title, "summary")
        with ui.element("div").classes("stack"):
            yield outer


def facts(rows: Sequence[tuple[str, object]]) -> ui.element:
    """Names and values, one pair a line."""
    with ui.element("dl").classes("facts") as found:
        for name, value in rows:
            words(name, "dt")
            words(value, "dd")
    return found


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = (), label: str = "") -> ui.element:
    """A table of text; the columns ``right`` are flush right. A cell that is callable fills itself with elements."""
    with ui.element("div").classes("scroll").props('tabindex="0" role="region"') as outer:
        outer.props["aria-label"] = line(label or headers[0])
        with ui.element("table").classes("table"):
            with ui.element("thead"), ui.element("tr"):
                for column, name in enumerate(headers):
                    words(name, "th", "right" if column in right else "").props('scope="col"')
            with ui.element("tbody"):
                for row in rows:
                    with ui.element("tr"):
                        for column, cell in enumerate(row):
                            _cell(cell, "right" if column in right else "", headers[column])
    return outer


def _cell(cell: Any, classes: str, label: str) -> None:
    """One cell; narrow screens show its column's name beside it."""
    made = ui.element("td").classes("tight" if callable(cell) and label == "actions" else classes)
    made.props["data-label"] = line(label)
    with made:
        if callable(cell):
            with ui.element("div"):
                cell()
        else:
            words(cell)


def button(text: str, act: Any, kind: str = "plain", label: str = "", icon: str | None = None) -> ui.button:
    """A button; ``kind`` is main, plain, quiet or danger; ``label`` is what a screen reader says where the text is not enough."""
    shape = {"main": "unelevated", "plain": "outline"}.get(kind, "flat")
    made = ui.button(text, on_click=act, icon=icon, color=None).props(f"no-caps {shape}").classes(f"act-{kind}")
    if label:
        made.props["aria-label"] = line(label)
    return made


def link_button(text: str, address: str, label: str = "") -> ui.element:
    """A link that looks like a button."""
    made = words(text, "a", "button-link")
    made.props["href"] = address
    if label:
        made.props["aria-label"] = line(label)
    return made


def size(n: float | None) -> str:
    """Bytes as people read them; a dash for none."""
    return "–" if n is None else size_text(n)


def say(text: object, kind: Literal["info", "positive", "warning", "negative"] = "info") -> None:
    """A passing message."""
    ui.notify(line(text, 1000), type=kind, multi_line=True, close_button="Close", timeout=8000 if kind == "negative" else 4000)


def figures(rows: Sequence[tuple[str, object]]) -> dict[str, TextElement]:
    """Numbers to be seen from afar, by name; the elements are returned for those that change."""
    made = {}
    with ui.element("dl").classes("figures"):
        for name, value in rows:
            with ui.element("div"):
                words(name, "dt")
                made[name] = words(value, "dd")
    return made
