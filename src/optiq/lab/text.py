"""The one way of foreign text to a page: plain characters, never HTML.

Model output, model names and data rows pass here before a page shows them. Elements show text as text; what is left to do is
what a browser or JSON cannot carry, or what makes text look like other text: broken UTF-8, control characters, overrides of the
writing direction, unbounded length. Knows nothing of elements.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

LONGEST = 200_000  # characters of one text on a page; a browser lays out more only slowly
_SURROGATE = re.compile("[\ud800-\udfff]")
# Overrides and isolates of direction (Unicode UAX #9): they let a name be read in another order than it is stored.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(value: object, longest: int = LONGEST) -> str:
    """A value as characters that any page, file and database takes.

    Args:
        value: anything; bytes are read as UTF-8.
        longest: characters to keep; what follows is counted.
    """
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    rest = len(text) - longest
    if rest > 0:
        text = text[:longest]
    text = _SURROGATE.sub("\ufffd", text).replace("\r\n", "\n")
    text = _DIRECTION.sub("\ufffd", text)
    text = _CONTROL.sub(_visible, text)
    return f"{text} … ({rest:,} more characters)" if rest > 0 else text


def line(value: object, longest: int = 300) -> str:
    """The same on one line, for names and titles."""
    return " ".join(plain(value, longest).split())


def command_text(words: Sequence[str]) -> str:
    """A command as one types it in a shell, from the words after ``optiq``."""
    return plain("optiq " + shlex.join(words))


def _visible(found: re.Match[str]) -> str:
    """The control character's picture (U+2400 …), or the mark of an unreadable one."""
    code = ord(found.group())
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"
