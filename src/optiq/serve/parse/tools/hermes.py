"""Hermes and Qwen up to 3: `<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>`.

Source: https://github.com/NousResearch/Hermes-Function-Calling, prompt format
"""

from __future__ import annotations

import re

from optiq.serve.parse.tape import Tape, Waiting
from optiq.serve.parse.tools.json_call import read_object
from optiq.serve.parse.tools.schema import Tools
from optiq.serve.parse.tools.sink import Sink

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_BRACKETS = re.compile(r"[}\]\s]*")


def read(tape: Tape, sink: Sink, tools: Tools) -> Waiting[bool]:
    """Read one block, which may hold several calls; brackets too many or too few before its end are repaired."""
    yield from tape.word(OPEN)
    while True:
        yield from tape.space()
        if (yield from tape.peek()) not in ("{", "["):
            return False
        if not (yield from read_object(tape, sink, CLOSE)):
            return False
        end = tape.at
        yield from tape.whole_run(_BRACKETS, limit=100)
        if (yield from tape.word(CLOSE)):
            return True
        tape.at = end
        yield from tape.space()
        if (yield from tape.peek()) != "{":
            tape.at = end  # the last word is missing, the call is whole
            return True
