"""How a chat is asked: system prompt, adapter, tools, thinking, sampling, JSON schema; what is left empty the server decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.value_element import ValueElement

from optiq.errors import OptiqError
from optiq.lab import client
from optiq.lab.chat.request import SAMPLING, Settings
from optiq.lab.client import Served
from optiq.lab.parts.elements import box, folded, say
from optiq.lab.text import line
from optiq.models.families import USES

PYTHON = {"": "none", "python": "Python, in the server's sandbox"}
THINKING = {"": "the model's own default", "on": "on", "off": "off"}


class ChatSettings:
    """The fields, folded away; ``now`` is what they say.

    Args:
        changed: called with the settings after each change of a user.
    """

    def __init__(self, changed: Callable[[Settings], None]) -> None:
        self.now, self.family = Settings(), ""
        self._changed, self._quiet = changed, False
        self._fields: dict[str, ValueElement[Any]] = {}
        self._model: dict[str, Any] = {}
        with folded("Settings of this chat"):
            self._add("system", ui.textarea("System prompt").props("outlined dense autogrow"))
            with box("grid"):
                self._choice("adapter", "Adapter", {"": "none"})
                self._choice("tools", "Tools", PYTHON)
                self._choice("thinking", "Thinking", THINKING)
                self._choice("use", "Sampling preset of the family", {"": "the model's own", **{use: use for use in USES}})
                for name in (*SAMPLING, "max_tokens", "seed"):
                    self._add(name, ui.input(name.replace("_", " ").capitalize()).props("outlined dense stack-label"))
            schema = ui.textarea("JSON schema that the reply has to obey").props("outlined dense autogrow input-class=mono")
            self._add("schema", schema)

    def put(self, settings: Settings) -> None:
        """Show these."""
        self.now, self._quiet = settings, True
        for name, field in self._fields.items():
            value = getattr(settings, name)
            if isinstance(field, ui.select) and value not in field.options:
                field.set_options({**dict(field.options), value: line(value)})
            field.set_value(value)
        self._quiet = False

    async def offer(self, up: Served) -> None:
        """Offer what a server has: its adapters, its family's presets, its own settings as hints."""
        try:
            models = (await client.get(up.url, "/v1/models"))["data"]
            adapters = await client.get(up.url, "/v1/adapters")
        except OptiqError as error:
            say(error, "warning")
            return
        self.family = str(models[0].get("family") or "")
        for name in SAMPLING:
            decided = models[0]["settings"].get(name)
            if decided:
                self._fields[name].props["placeholder"] = f"{decided['value']:g} ({decided['source'].replace('_', ' ')})"
        without = "none" if up.python else "none; the server offers Python when it is started with --tools python"
        self._offer("tools", {**PYTHON, "": without} if up.python or self.now.tools else {"": without})
        names = dict.fromkeys([*adapters["mounted"], *adapters["available"], self.now.adapter])
        self._offer("adapter", {"": "none", **{name: line(name) for name in names if name}})

    def _offer(self, name: str, known: dict[str, str]) -> None:
        """Other options for a choice, which stays as it is."""
        field = self._fields[name]
        assert isinstance(field, ui.select)
        field.set_options(known, value=getattr(self.now, name))

    def _choice(self, name: str, label: str, known: dict[str, str]) -> None:
        field = ui.select(known, label=label, value="").props("outlined dense options-dense")
        field.props["aria-label"] = label
        self._add(name, field)

    def _add(self, name: str, field: ValueElement[Any]) -> None:
        self._fields[name] = field

        def keep(value: Any) -> None:
            setattr(self.now, name, str(value or ""))
            if not self._quiet:
                self._changed(self.now)

        field.on_value_change(lambda event: keep(event.value))
