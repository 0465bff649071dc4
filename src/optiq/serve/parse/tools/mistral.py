"""Mistral: `[TOOL_CALLS][{"name": "f", "arguments": {…}}, …]`, and since 2025 `[TOOL_CALLS]f[ARGS]{…}` for each call.

Source: https://docs.mistral.ai/capabilities/function_calling, https://github.com/mistralai/mistral-common (tokenizer v3 to v13)
"""

from __future__ import annotations

import re
import secrets
import string

from optiq.serve.parse.literal import value
from optiq.serve.parse.tape import Tape, Waiting
from optiq.serve.parse.tools.json_call import read_object
from optiq.serve.parse.tools.schema import Tools
from optiq.serve.parse.tools.sink import Sink

OPEN, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
LONGEST_NAME = 200
_NAME = re.compile(r"[\w.\-]*", re.ASCII)


def new_id() -> str:
    """An id of nine letters and digits: the templates refuse any other."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def read(tape: Tape, sink: Sink, tools: Tools) -> Waiting[bool]:
    """Read an array of calls, or one call."""
    yield from tape.word(OPEN)
    yield from tape.space()
    first = yield from tape.peek()
    if first == "[":
        tape.at += 1
        return (yield from _read_array(tape, sink))
    if first == "{":
        return (yield from read_object(tape, sink))
    return (yield from _read_named(tape, sink))


def _read_array(tape: Tape, sink: Sink) -> Waiting[bool]:
    while True:
        yield from tape.space()
        if not (yield from read_object(tape, sink)):
            return False
        yield from tape.space()
        comma = yield from tape.word(",")
        yield from tape.space()
        if (yield from tape.word("]")) or not (yield from tape.peek()):
            return True  # at the end of the text the bracket may be missing
        if not comma:
            return False


def _read_named(tape: Tape, sink: Sink) -> Waiting[bool]:
    name = yield from tape.whole_run(_NAME, LONGEST_NAME)
    id = (yield from tape.whole_run(_NAME, LONGEST_NAME)) if (yield from tape.word(ID)) else ""
    yield from tape.word(ARGUMENTS)
    yield from tape.space()
    if not name or (yield from tape.peek()) != "{":
        return False
    sink.start(name, id)
    if not (yield from value(tape, sink.arguments)):
        return False
    sink.end()
    return True
