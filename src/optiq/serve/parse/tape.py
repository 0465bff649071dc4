"""Text that arrives in pieces, read as if it were there already: what every parser of this package reads from.

A parser is a generator over a `Tape`. It yields where it needs more text than there is and goes on when some has come, so
it is written like a parser of a whole text and decides on what the text says alone, never on where a piece ended. That is
why any chunking of a text gives the same result. Knows nothing of what is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Waiting = Generator[None, None, T]  # yields to wait for more text, returns T

SPACES = " \t\r\n"  # white space that lays a text out; other kinds are content
_SPACE_RUN = re.compile(f"[{SPACES}]*")


class Tape:
    """The text so far and a place in it.

    Attributes:
        text: what has come and is still needed.
        at: the place of reading, an index into `text`; a parser may set it back to one that it has kept.
        closed: no more will come.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.closed = False

    def feed(self, piece: str) -> None:
        """More text."""
        self.text += piece

    def close(self) -> None:
        """No more text."""
        self.closed = True

    def drop(self, end: int) -> None:
        """Forget what stands before `end` and go on there; places that were kept mean nothing afterwards."""
        self.text, self.at = self.text[end:], 0

    def peek(self) -> Waiting[str]:
        """The next character, which stays; "" at the end."""
        while self.at >= len(self.text):
            if self.closed:
                return ""
            yield
        return self.text[self.at]

    def ahead(self, count: int) -> Waiting[str]:
        """The next `count` characters, which stay; fewer at the end."""
        while self.at + count > len(self.text) and not self.closed:
            yield
        return self.text[self.at : self.at + count]

    def sees(self, word: str) -> Waiting[bool]:
        """Whether `word` comes next; it stays. Waits only while it could."""
        while True:
            here = self.text[self.at : self.at + len(word)]
            if here == word:
                return True
            if self.closed or not word.startswith(here):
                return False
            yield

    def word(self, word: str) -> Waiting[bool]:
        """Whether `word` comes next; it is read."""
        found = yield from self.sees(word)
        if found:
            self.at += len(word)
        return found

    def space(self) -> Waiting[None]:
        """Read white space, as much as there is."""
        while True:
            self.run(_SPACE_RUN)
            if self.at < len(self.text) or self.closed:
                return
            yield

    def run(self, pattern: re.Pattern[str]) -> str:
        """Read what matches `pattern` of the text that is there; the run may go on with the next piece."""
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match.group()

    def whole_run(self, pattern: re.Pattern[str], limit: int) -> Waiting[str]:
        """Read all characters that match `pattern` (one character class, repeated); "" and nothing read beyond `limit`."""
        start = self.at
        while True:
            self.run(pattern)
            if self.at - start > limit:
                self.at = start
                return ""
            if self.at < len(self.text) or self.closed:
                return self.text[start : self.at]
            yield


def open_end(text: str, words: Iterable[str]) -> int:
    """How many characters at the end of `text` are the beginning of one of `words`."""
    return max((_overlap(text, word) for word in words), default=0)


def _overlap(text: str, word: str) -> int:
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
