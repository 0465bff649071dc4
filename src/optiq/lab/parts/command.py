"""The command of a page, ready to copy: what the page does, one can do in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from optiq.lab.parts.elements import button, say, words
from optiq.lab.text import command_text, line


class CommandBox:
    """A box with a command; `show` puts another one in."""

    def __init__(self, command: Sequence[str] | None = None, title: str = "This runs") -> None:
        with ui.element("figure").classes("command") as self.box:
            with ui.element("figcaption").classes("spread"):
                words(title)
                button("Copy", self._copy, "quiet", label="Copy the command")
            with ui.element("pre").props('tabindex="0"'):
                self._text = words("", "code")
            self._remark = words("", "span", "soft small").props('role="status"')
        if command is not None:
            self.show(command)

    def show(self, command: Sequence[str], remark: str = "") -> None:
        """Put these words after ``optiq``, and below them what one should know before they run."""
        self._text.set_text(command_text(command))
        self._remark.set_text(line(remark))

    def show_text(self, text: str) -> None:
        """Put a command of another program."""
        self._text.set_text(text)

    def _copy(self) -> None:
        ui.clipboard.write(self._text.text)
        say("copied")
