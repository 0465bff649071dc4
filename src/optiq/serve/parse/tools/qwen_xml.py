"""Qwen3-Coder and Qwen3.5: `<tool_call><function=f><parameter=a>value</parameter></function></tool_call>`.

Values are bare text between one line break on each side; their types come from the tool's schema. Text streams, other
types are read to their end. Repaired is what these models are known to leave out: the outer tag, a closing tag.

Source: the chat template of Qwen/Qwen3.5-4B
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from optiq.serve.parse.literal import escaped
from optiq.serve.parse.tape import Tape, Waiting
from optiq.serve.parse.tools.schema import Tools, as_json
from optiq.serve.parse.tools.sink import Sink

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
LONGEST_NAME = 200
_NAME = re.compile(r"[^<>\n]*")
_VALUE = re.compile(r"[^<\n]*")


def read(tape: Tape, sink: Sink, tools: Tools) -> Waiting[bool]:
    """Read one call; without the outer tag it has to name a known tool."""
    wrapped = yield from tape.word(OPEN)
    yield from tape.space()
    if not (yield from tape.word(FUNCTION)):
        return False
    name = yield from _name(tape)
    yield from tape.space()
    if not name or not (wrapped or name in tools) or not (yield from _sees_any(tape, PARAMETER, END_FUNCTION, CLOSE)):
        return False
    sink.start(name)
    lead = "{"
    while (yield from tape.word(PARAMETER)):
        key = yield from _name(tape)
        if not key:
            return False
        sink.arguments(f"{lead}{json.dumps(key, ensure_ascii=False)}: ")
        lead = ", "
        if not (yield from _read_value(tape, sink.arguments, tools.arguments(name), tools.types(name, key))):
            return False
        yield from tape.space()
    closed = yield from tape.word(END_FUNCTION)
    end = tape.at
    yield from tape.space()
    if not (yield from tape.word(CLOSE)):
        tape.at = end
        if not closed:
            return False
    sink.arguments("{}" if lead == "{" else "}")
    sink.end()
    return True


def _name(tape: Tape) -> Waiting[str]:
    """What stands before `>`; "" where that does not come."""
    name = yield from tape.whole_run(_NAME, LONGEST_NAME)
    return name.strip().strip("\"'") if (yield from tape.word(">")) else ""


def _sees_any(tape: Tape, *words: str) -> Waiting[bool]:
    for word in words:
        if (yield from tape.sees(word)):
            return True
    return False


def _read_value(tape: Tape, write: Callable[[str], None], known: Mapping[str, Any], types: tuple[str, ...]) -> Waiting[bool]:
    """Read a value and what closes it, and write the JSON; text while it arrives."""
    yield from tape.word("\n")
    streams = set(types) == {"string"}
    if not types:  # only what looks like a structure can be anything but text
        streams = (yield from tape.peek()) not in ("{", "[")
    if not streams:
        parts: list[str] = []
        whole = yield from _read_text(tape, parts.append, known)
        write(as_json("".join(parts), types) if whole else "")
        return whole
    write('"')
    whole = yield from _read_text(tape, lambda piece: write(escaped(piece)), known)
    write('"' if whole else "")
    return whole


def _read_text(tape: Tape, write: Callable[[str], None], known: Mapping[str, Any]) -> Waiting[bool]:
    while True:
        write(tape.run(_VALUE))
        char = yield from tape.peek()
        if not char:
            return False
        start = tape.at
        if (yield from _closes(tape, known)):
            return True
        tape.at = start
        if char in "<\n":
            tape.at += 1
            write(char)


def _closes(tape: Tape, known: Mapping[str, Any]) -> Waiting[bool]:
    """Whether the value ends here; if so, the tape stands behind what closes it.

    A closing tag counts where the call goes on after it as it should, so that a value may speak of such tags.
    """
    newline = yield from tape.word("\n")
    if (yield from tape.word(END_PARAMETER)):
        yield from tape.space()
        return not (yield from tape.peek()) or (yield from _sees_any(tape, PARAMETER, END_FUNCTION, CLOSE))
    here = tape.at  # from here on the closing tag is missing
    if (yield from tape.word(END_FUNCTION)):
        yield from tape.space()
        closes = not (yield from tape.peek()) or (yield from tape.sees(CLOSE))
    else:
        closes = newline and (yield from tape.word(PARAMETER)) and (yield from _name(tape)) in known
    tape.at = here
    return closes
