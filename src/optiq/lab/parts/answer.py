"""The place of an answer: what is waited for, then what the command said, or why it said nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nicegui import ui

from optiq.errors import OptiqError
from optiq.lab.ask import ask
from optiq.lab.parts.elements import note, paragraph


async def answer(place: ui.element, words: Sequence[str], waiting: str) -> dict[str, Any] | None:
    """What ``optiq WORDS --json`` prints, with the place empty for it; None where it failed, which the place tells.

    Args:
        place: whose content is replaced.
        waiting: stands there meanwhile.
    """
    place.clear()
    with place:
        paragraph(waiting, "soft")
    try:
        return await ask(words)
    except OptiqError as error:
        found = error
    finally:
        place.clear()
    with place:
        note(found, "error")
    return None
