"""Fields bound to the attributes of a form, a dataclass whose texts are what a command line would have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.value_element import ValueElement


class Fields:
    """Makes fields; each writes its value into the form and says so.

    Args:
        form: its attributes are the fields' names; texts, truth values, or lists of texts.
        changed: called after each change.
    """

    def __init__(self, form: Any, changed: Callable[[], None]) -> None:
        self._form, self._changed = form, changed
        self._made: dict[str, ValueElement[Any]] = {}

    def text(self, label: str, name: str, usual: str = "") -> None:
        """A line of text; ``usual`` is what an empty one stands for."""
        field = ui.input(label, value=getattr(self._form, name), placeholder=usual).props("outlined dense")
        if usual:
            field.props("stack-label")
        self._bind(field, name)

    def lines(self, label: str, name: str) -> None:
        """A text of several lines."""
        self._bind(ui.textarea(label, value=getattr(self._form, name)).props("outlined autogrow dense"), name)

    def select(self, label: str, name: str, known: Mapping[str, str], several: bool = False, typed: bool = False) -> None:
        """A choice; ``typed`` allows other texts than the known ones."""
        value = getattr(self._form, name)
        offered = dict(known) | ({value: value} if typed and value and value not in known else {})
        field = ui.select(
            offered,
            label=label,
            value=value if several or value in offered else None,
            multiple=several,
            with_input=typed,
            new_value_mode="add-unique" if typed else None,
        )
        field.props("outlined dense options-dense").props["aria-label"] = label
        self._bind(field, name)

    def check(self, label: str, name: str) -> None:
        """Yes or no."""
        self._bind(ui.checkbox(label, value=bool(getattr(self._form, name))), name)

    def put(self, name: str, value: Any, shown: str = "") -> None:
        """Set a field as a user would; a choice that does not know the value learns it, and shows it as ``shown``."""
        field = self._made[name]
        if isinstance(field, ui.select) and isinstance(field.options, dict) and value not in field.options:
            field.set_options({**field.options, value: shown or value})
        field.set_value(value)

    def _bind(self, field: ValueElement[Any], name: str) -> None:
        empty: Any = [] if isinstance(getattr(self._form, name), list) else ""

        def keep(value: Any) -> None:
            setattr(self._form, name, empty if value is None else value)
            self._changed()

        field.on_value_change(lambda event: keep(event.value))
        self._made[name] = field
