"""Which format of tool calls a model was trained on, by its chat template.

The template writes a conversation that holds a known call, and the format is the one whose own parser reads that call
back. Nothing else is asked: `tool_parser_type` in tokenizer_config.json is wrong in real files. Templates are programs of
strangers and run in a sandbox. Knows no format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from optiq.models.chat import TEMPLATE_FAILURES
from optiq.models.thinking import KNOWN
from optiq.serve.parse.deltas import gather
from optiq.serve.parse.tools import FORMATS
from optiq.serve.parse.tools.parser import ToolParser
from optiq.serve.parse.tools.schema import Tools
from optiq.serve.template import compiled

# A number alone, and compared as text: some templates write strings without quotes, others put quotes around numbers.
NAME, ARGUMENTS = "probe_weather", {"days": 3}
QUESTION, RESULT, CALL_ID = "Probe question?", "Probe result.", "probe0001"  # nine characters: Mistral's templates want them
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Probes.",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "description": "Days."}},
            "required": ["days"],
        },
    },
}


@lru_cache(maxsize=32)
def detect(template: str) -> str | None:
    """The name in `FORMATS` of the calls that a template writes.

    Args:
        template: the text of a chat template (Jinja).

    Returns:
        None where it writes no calls, writes them in no known format, or is broken.
    """
    for text in _renderings(template):
        for name, format in FORMATS.items():
            parser = ToolParser(format, Tools([TOOL]))
            message = gather(parser.add(text) + parser.finish())
            if any(call.name == NAME and _same(json.loads(call.arguments)) for call in message.calls):
                return name
    return None


def _same(arguments: dict[str, Any]) -> bool:
    return {key: str(value) for key, value in arguments.items()} == {key: str(value) for key, value in ARGUMENTS.items()}


def _renderings(template: str) -> Iterator[str]:
    """What the template writes of a turn with one call, for each way in which templates want the call's arguments."""
    try:
        writer = compiled(template)
    except TEMPLATE_FAILURES:
        return
    for arguments in (ARGUMENTS, json.dumps(ARGUMENTS)):
        call = {"id": CALL_ID, "type": "function", "function": {"name": NAME, "arguments": arguments}}
        messages = [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": NAME, "tool_call_id": CALL_ID, "content": RESULT},
        ]
        values: dict[str, Any] = {"tools": [TOOL], "bos_token": "", "eos_token": ""}
        for shown in (messages, messages[:2]):  # some want a result after a call, others know no such role
            try:
                text = writer.render(messages=shown, **values)
                opened = writer.render(messages=messages[:1], add_generation_prompt=True, **values)
            except TEMPLATE_FAILURES:
                continue  # it wants its calls in another way, or none at all
            yield from _turns(text, opened)


def _turns(text: str, opened: str) -> Iterator[str]:
    """What may be the assistant's turn in a conversation, without its reasoning.

    It begins after the question's end and the turn's head, which no template marks. What is said after the question holds
    it; where the prompt that opens a turn stops to be the same leaves the head out, and sometimes the first sign as well.
    """
    same = next((n for n, (a, b) in enumerate(zip(text, opened, strict=False)) if a != b), min(len(text), len(opened)))
    for turn in (text[same:], text.rpartition(QUESTION)[2]):
        turn = turn.partition(RESULT)[0]
        for tags in KNOWN:
            turn = turn.rpartition(tags.close)[2]
        yield turn
