"""Values as models write them, JSON or Python, read while they arrive and written again as JSON.

What is certain is repaired on the way: a comma too many, control characters in strings, single or triple quotes, unknown
escapes (the backslash was meant), True, False and None, numbers such as `.5` and `1_000`, brackets that are missing where
the caller knows that the value is over. Anything else is malformed. Knows nothing of calls.

Source: JSON, RFC 8259; Python's literals, https://docs.python.org/3/reference/lexical_analysis.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from optiq.serve.parse.tape import Tape, Waiting

Write = Callable[[str], None]

DEEPEST = 100  # brackets within brackets; readers of JSON recurse, and tools take far fewer
LONGEST_SCALAR = 400  # characters of a number or word

_CLOSERS = {"{": "}", "[": "]"}
_QUOTES = ('"', "'")
_WORDS = {"true": "true", "True": "true", "false": "false", "False": "false", "null": "null", "None": "null"}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_SCALAR = re.compile(r"""[^\s,:\[\]{}()<>"'=]*""")
_PLAIN = re.compile(r"""[^"'\\\x00-\x1f]*""")  # stands in a JSON string as it is
_SAME_ESCAPES = frozenset('nrtbf"\\/')
_ESCAPABLE = _SAME_ESCAPES | {"'", "\n"}  # a line break after a backslash is none: the line goes on
_CODES = {"x": 2, "u": 4, "U": 8}  # escapes by code point, and their hexadecimal digits
_HEX = re.compile(r"[0-9a-fA-F]+")


def value(tape: Tape, write: Write, over: str = "") -> Waiting[bool]:
    """Read one value and write it as JSON while it arrives.

    Args:
        tape: stands before the value or white space before it.
        write: takes pieces of JSON text.
        over: what ends the value whatever is still open, for instance `</tool_call>`; it is not read.

    Returns:
        Whether it is whole. If not, the tape stands where it went wrong, and what was written is no JSON.
    """
    open_: list[str] = []  # the closers of what is open
    while True:
        yield from tape.space()
        char = yield from tape.peek()
        if char in _CLOSERS and len(open_) < DEEPEST:
            tape.at += 1
            write(char)
            open_.append(_CLOSERS[char])
            yield from tape.space()
            if (yield from tape.peek()) != open_[-1]:
                if char == "{" and not (yield from _key(tape, write)):
                    return False
                continue
        elif not (yield from _simple(tape, char, write)):
            return False
        more = yield from _close(tape, write, open_, over)
        if more is None:
            return False
        if not more:
            return True


def _close(tape: Tape, write: Write, open_: list[str], over: str) -> Waiting[bool | None]:
    """After a value: close what closes here. True: a value follows; False: all is closed; None: malformed."""
    while open_:
        yield from tape.space()
        char = yield from tape.peek()
        if char == open_[-1]:
            tape.at += 1
            write(open_.pop())
        elif char == ",":
            tape.at += 1
            yield from tape.space()
            if (yield from tape.peek()) == open_[-1]:
                continue  # a comma too many
            write(", ")
            return True if open_[-1] == "]" or (yield from _key(tape, write)) else None
        elif over and (yield from tape.sees(over)):
            write("".join(reversed(open_)))
            return False
        else:
            return None
    return False


def _key(tape: Tape, write: Write) -> Waiting[bool]:
    """The name of a member and its colon."""
    if (yield from tape.peek()) not in _QUOTES or not (yield from string(tape, write)):
        return False
    yield from tape.space()
    write(": ")
    return (yield from tape.word(":"))


def _simple(tape: Tape, char: str, write: Write) -> Waiting[bool]:
    """A string, a number or a word."""
    if char in _QUOTES:
        return (yield from string(tape, write))
    start = tape.at
    word = yield from tape.whole_run(_SCALAR, LONGEST_SCALAR)
    found = scalar(word)
    if found is None:
        tape.at = start
        return False
    write(found)
    return True


def scalar(word: str) -> str | None:
    """A number or a word as JSON; None if it is neither."""
    if word in _WORDS:
        return _WORDS[word]
    number = re.sub(r"(?<=[0-9])_(?=[0-9])", "", word).removeprefix("+")
    number = re.sub(r"^(-?)\.(?=[0-9])", r"\g<1>0.", number)
    number = re.sub(r"(?<=[0-9])\.(?![0-9])", ".0", number)
    return number if _NUMBER.fullmatch(number) else None


def string(tape: Tape, write: Write) -> Waiting[bool]:
    """Read a string in any quotes and write it as a JSON string while it arrives; the tape stands before its quote."""
    quote = tape.text[tape.at]
    tape.at += 1
    end = quote * 3 if (yield from tape.word(quote * 2)) else quote
    write('"')
    while True:
        if plain := tape.run(_PLAIN):
            write(plain)
        char = yield from tape.peek()
        if not char:
            return False
        if char == quote and (yield from tape.word(end)):
            write('"')
            return True
        if char == "\\":
            tape.at += 1
            yield from _escape(tape, write)
        elif not _PLAIN.fullmatch(char):  # another quote or a control character
            tape.at += 1
            write(escaped(char))


def _escape(tape: Tape, write: Write) -> Waiting[None]:
    """What follows a backslash; where that is no escape, the backslash was meant."""
    char = yield from tape.peek()
    if char in _CODES:
        digits = (yield from tape.ahead(1 + _CODES[char]))[1:]
        code = int(digits, 16) if len(digits) == _CODES[char] and _HEX.fullmatch(digits) else -1
        if 0 <= code <= 0x10FFFF:
            tape.at += 1 + len(digits)
            # A surrogate has to stay an escape: half of a character has no other form.
            write(f"\\u{code:04x}" if char == "u" or 0xD800 <= code < 0xE000 else escaped(chr(code)))
            return
    if not char or char not in _ESCAPABLE:
        write("\\\\")
        return
    tape.at += 1
    if char in _SAME_ESCAPES:
        write("\\" + char)
    elif char == "'":
        write("'")


def escaped(text: str) -> str:
    """A text as it stands between the quotes of a JSON string; texts may be escaped piece by piece."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def dumped(data: Any) -> str:
    """Data as JSON text that UTF-8 can carry.

    Raises:
        ValueError: it holds a number that JSON does not know (infinity).
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a character: it has to be an escape
        return json.dumps(data, allow_nan=False)
    return text
