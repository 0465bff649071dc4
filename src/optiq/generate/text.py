"""Token ids to text while they arrive: whole characters only, and an end where a stop string begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character (yet)
LONGEST_OPEN = 3  # bytes of a UTF-8 character that can be waiting for their last one


class Pieces:
    """Decodes a stream of token ids; what it gives out never changes afterwards, so no character is ever split.

    Works with any tokenizer that decodes lists of ids: the text of a window of recent tokens is compared with the text
    of its settled part, which keeps the joints (spaces, joined characters) as they are in the whole. Replacement signs at
    the end of the window wait, for they may be the first bytes of a character whose others come with the next token.

    Args:
        tokenizer: with `decode(ids)`; special tokens are spelled out.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._settled = 0  # how many of the window's ids have all their text given out
        self._given = 0  # characters of the window's text beyond the settled part that are given out already

    def add(self, token: int) -> str:
        """The text that this token completes; often "", sometimes more than its own."""
        self._ids.append(token)
        fresh = self._fresh()
        waiting = min(len(fresh) - len(fresh.rstrip(BROKEN)), LONGEST_OPEN)
        piece = fresh[self._given : len(fresh) - waiting]
        if waiting:
            self._given += len(piece)
        else:  # all is settled: the next window begins with what was new in this one
            self._ids, self._settled, self._given = self._ids[self._settled :], len(self._ids) - self._settled, 0
        return piece

    def finish(self) -> str:
        """What was still waiting; bytes that never became a character come out as replacement signs."""
        piece = self._fresh()[self._given :]
        self._ids, self._settled, self._given = [], 0, 0
        return piece

    def _fresh(self) -> str:
        """The window's text after that of its settled part."""
        return self._decode(self._ids)[len(self._decode(self._ids[: self._settled])) :]

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text) if ids else ""


class StopStrings:
    """Passes text on until one of some strings appears, also where it is spread over several pieces.

    The one that is complete first counts, and of two that end together the longer, so that pieces make no difference.

    Args:
        stops: the strings, none of them empty; they are not passed on.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def pass_on(self, piece: str) -> str:
        """What is certain to come before any stop; `found` is set when one has appeared."""
        text = self._held + piece
        places = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            _, at, self.found = min(places)
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back because it could have become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
