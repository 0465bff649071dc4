"""Choosing a model: the ones on this disk, or any path or hub id that one types."""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui

from optiq.lab.library import Library, Model
from optiq.lab.parts.elements import size
from optiq.lab.text import line


def option_text(model: Model) -> str:
    """How a model stands in a list."""
    bits = "" if model.bpw is None else f", {model.bpw:.2f} bits"
    return f"{model.title} ({size(model.bytes)}{bits})"


RENEW_S = 1.0


class ModelPicker:
    """A list of models, which follows the disk; `value` is what a command is given, empty for none.

    Args:
        accept: which models are offered.
        chosen: called with the new value.
    """

    def __init__(
        self,
        library: Library,
        label: str,
        value: str = "",
        accept: Callable[[Model], bool] = lambda model: True,
        chosen: Callable[[str], object] = lambda value: None,
    ) -> None:
        self._library, self._accept = library, accept
        self._offered = library.models
        options = self._options()
        if value and value not in options:
            options[value] = line(value)
        self._select = ui.select(
            options,
            label=label,
            value=value or None,
            with_input=True,
            new_value_mode="add",
            key_generator=self._named,
            on_change=lambda: chosen(self.value),
        )
        self._select.classes("picker").props("outlined dense options-dense hide-dropdown-icon=false")
        self._select.props["aria-label"] = label
        ui.timer(RENEW_S, self._follow)

    def _follow(self) -> None:
        """Offer what is new where the library has read the disk again."""
        if self._offered is not self._library.models:
            self.renew()

    def _options(self) -> dict[str, str]:
        return {
            model.name: option_text(model) for model in self._library.models if self._accept(model) and model.kind != "broken"
        }

    def _named(self, text: str) -> str:
        """What was typed, as a model's name: the field holds the text of the chosen model, and Tab hands that back as typed."""
        return next((name for name, shown in dict(self._select.options).items() if shown == text), text.strip())

    @property
    def value(self) -> str:
        """The model's name for commands."""
        return str(self._select.value or "")

    def choose(self, value: str) -> None:
        """Set it."""
        options = self._options()
        if value and value not in options:
            options[value] = line(value)
        self._select.set_options(options, value=value or None)

    def renew(self) -> None:
        """Offer what the library has now; a list that is the same stays, as somebody may be choosing from it."""
        kept, self._offered = self.value, self._library.models
        options = self._options()
        if kept and kept not in options:
            options[kept] = line(kept)
        if options != self._select.options:
            self._select.set_options(options, value=kept or None)
