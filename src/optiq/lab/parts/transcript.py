"""The turns of a conversation on a page: drawn by `transcript.js` itself, outside of the UI library's tree of elements, so that
thousands of turns cost nothing while one is written. Texts go through `text.plain` and are set as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui.element import Element
from nicegui.events import GenericEventArguments

from optiq.lab.chat.cards import Card, cards, run_card
from optiq.lab.chat.request import footer
from optiq.lab.chat.store import Message
from optiq.lab.text import line, plain


class Transcript(Element, component="transcript.js"):
    """A log of turns.

    Args:
        act: called with (``edit`` or ``again``, the turn's id) when a user asks for it.
    """

    def __init__(self, act: Callable[[str, int], Any]) -> None:
        super().__init__()
        self.classes("transcript")
        self.on("act", lambda event: act(*_asked(event)))

    def show(self, messages: Sequence[Message]) -> None:
        """Draw these turns in place of all others."""
        self.run_method("show", [_turn(message) for message in messages])

    def add(self, message: Message) -> None:
        """Draw one more."""
        self.run_method("add", _turn(message))

    def begin(self) -> None:
        """Draw an empty reply that `append` fills."""
        self.run_method(
            "add", {"id": 0, "role": "assistant", "content": "", "reasoning": "", "files": [], "footer": "", "cards": []}
        )

    def append(self, content: str, reasoning: str) -> None:
        """Add to the reply that is being written."""
        self.run_method("append", plain(content), plain(reasoning))

    def run(self, run: Mapping[str, Any]) -> None:
        """Show a program that was run for the reply that is being written."""
        self.run_method("card", _card(run_card(run)))

    def end(self, message: Message) -> None:
        """Put the finished turn in the place of the one that was being written."""
        self.run_method("end", _turn(message))

    def drop(self) -> None:
        """Take the empty reply away that `begin` drew."""
        self.run_method("cut", 1 << 52)

    def cut(self, first: int) -> None:
        """Take a turn away, and all after it."""
        self.run_method("cut", first)


def _asked(event: GenericEventArguments) -> tuple[str, int]:
    what, number = event.args["what"], event.args["id"]
    return (str(what) if what in ("edit", "again") else ""), int(number)


def _card(card: Card) -> dict[str, Any]:
    return {"title": card.title, "texts": [{"name": name, "text": text} for name, text in card.texts]}


def _turn(message: Message) -> dict[str, Any]:
    """A turn for the page."""
    return {
        "id": message.id,
        "role": message.role,
        "content": plain(message.content),
        "reasoning": plain(message.reasoning),
        "files": [f"{line(file['name'], 80)} ({len(file['text']):,} characters)" for file in message.facts.get("files") or []],
        "cards": [_card(card) for card in cards(message.facts)],
        "footer": line(footer(message.facts), 400),
    }
