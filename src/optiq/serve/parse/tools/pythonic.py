"""Calls as a list of Python calls, `[f(a=1), g(b="x")]`, as Llama 3.2, Llama 4 and LFM2 write them.

Bare brackets are common in text, so they count at the beginning of a line alone and before the name of a tool.

Source: https://github.com/meta-llama/llama-models, models/llama4/prompt_format.md; https://docs.liquid.ai, tool use
"""

from __future__ import annotations

import json
import re

from optiq.serve.parse.literal import value
from optiq.serve.parse.tape import Tape, Waiting
from optiq.serve.parse.tools.schema import Tools, as_json
from optiq.serve.parse.tools.sink import Sink

OPENERS, CLOSERS = ("<|python_start|>", "<|tool_call_start|>"), ("<|python_end|>", "<|tool_call_end|>")
LONGEST_NAME = 200
_NAME = re.compile(r"[\w.\-]*")


def read(tape: Tape, sink: Sink, tools: Tools) -> Waiting[bool]:
    """Read one list."""
    for opener in OPENERS:
        yield from tape.word(opener)
    yield from tape.space()
    if not (yield from tape.word("[")):
        return False
    while True:
        yield from tape.space()
        if not (yield from _read_call(tape, sink, tools)):
            return False
        yield from tape.space()
        comma = yield from tape.word(",")
        yield from tape.space()
        if (yield from tape.word("]")):
            break
        if not comma:
            return not (yield from tape.peek())  # at the end of the text the bracket may be missing
    for closer in CLOSERS:
        yield from tape.word(closer)
    return True


def _read_call(tape: Tape, sink: Sink, tools: Tools) -> Waiting[bool]:
    name = yield from tape.whole_run(_NAME, LONGEST_NAME)
    if name not in tools or not (yield from tape.word("(")):
        return False
    yield from tape.space()
    if (yield from tape.word(")")):
        sink.call(name, "{}")
        return True
    key = yield from _keyword(tape)
    if not key:
        return False
    sink.start(name)
    lead = "{"
    while key:
        sink.arguments(f'{lead}"{key}": ')
        lead = ", "
        if not (yield from _read_value(tape, sink, tools.types(name, key))):
            return False
        yield from tape.space()
        comma = yield from tape.word(",")
        yield from tape.space()
        if (yield from tape.word(")")):
            sink.arguments("}")
            sink.end()
            return True
        key = (yield from _keyword(tape)) if comma else ""
    return False


def _read_value(tape: Tape, sink: Sink, types: tuple[str, ...]) -> Waiting[bool]:
    """A value; one in quotes where the schema allows no text is what stands in them, for some templates quote everything."""
    if not types or "string" in types or (yield from tape.peek()) not in ('"', "'"):
        return (yield from value(tape, sink.arguments))
    parts: list[str] = []
    whole = yield from value(tape, parts.append)
    if whole:
        sink.arguments(as_json(json.loads("".join(parts)), types))
    return whole


def _keyword(tape: Tape) -> Waiting[str]:
    """`name=`; "" where that is not what comes."""
    name = yield from tape.whole_run(_NAME, LONGEST_NAME)
    yield from tape.space()
    found = yield from tape.word("=")
    yield from tape.space()
    return name if found else ""
