"""A call written as an object, `{"name": …, "arguments": {…}}`, read while it arrives; several formats wrap it.

Where the name comes first, the call is told at once and its arguments stream. Any other order or shape is read to its end
first. Knows nothing of what stands around the object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optiq.serve.parse.literal import dumped, string, value
from optiq.serve.parse.tape import Tape, Waiting
from optiq.serve.parse.tools.sink import Sink

ARGUMENTS = ("arguments", "parameters")  # both names are in use


def read_object(tape: Tape, sink: Sink, over: str = "") -> Waiting[bool]:
    """Read one such object, or an array of them; whether it was well formed.

    Args:
        tape: stands before the bracket.
        sink: takes the calls.
        over: what ends the object whatever is still open; it is not read.
    """
    start = tape.at
    name = yield from _name(tape)
    if name is None:
        tape.at = start
        return (yield from _read_whole(tape, sink, over))
    sink.start(name)
    if not (yield from value(tape, sink.arguments, over)):
        return False
    yield from _read_rest(tape)
    sink.end()
    return True


def _name(tape: Tape) -> Waiting[str | None]:
    """The name, with the tape before the arguments' bracket; None where the object begins in any other way."""
    if not (yield from tape.word("{")) or (yield from _string(tape)) != "name":
        return None
    if not (yield from _sign(tape, ":")):
        return None
    name = yield from _string(tape)
    if not _is_name(name) or not (yield from _sign(tape, ",")) or (yield from _string(tape)) not in ARGUMENTS:
        return None
    if not (yield from _sign(tape, ":")):
        return None
    yield from tape.space()
    return name if (yield from tape.peek()) == "{" else None


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name != "" and name.isprintable()


def _sign(tape: Tape, sign: str) -> Waiting[bool]:
    yield from tape.space()
    return (yield from tape.word(sign))


def _string(tape: Tape) -> Waiting[str | None]:
    """A string after white space, None if there is none."""
    yield from tape.space()
    parts: list[str] = []
    if (yield from tape.peek()) not in ('"', "'") or not (yield from string(tape, parts.append)):
        return None
    return str(json.loads("".join(parts)))


def _read_rest(tape: Tape) -> Waiting[None]:
    """After the arguments: other members, which say nothing (an id, a type), and the last bracket, which may be missing."""
    end = tape.at
    while (yield from _sign(tape, ",")):
        yield from tape.space()
        if (yield from tape.peek()) == "}":
            break  # a comma too many
        key = yield from _string(tape)
        if key is None or not (yield from _sign(tape, ":")) or not (yield from value(tape, _ignore)):
            tape.at = end  # what this is, is not certain: it stays for the text
            return
        end = tape.at
    if not (yield from tape.word("}")):
        tape.at = end


def _ignore(_: str) -> None:
    pass


def _read_whole(tape: Tape, sink: Sink, over: str) -> Waiting[bool]:
    parts: list[str] = []
    if not (yield from value(tape, parts.append, over)):
        return False
    calls = _calls("".join(parts))
    for name, arguments in calls:
        sink.call(name, arguments)
    return bool(calls)


def _calls(text: str) -> list[tuple[str, str]]:
    """The calls that a JSON text stands for; none if one of them is not a call."""
    data = json.loads(text)
    found = [_call(item) for item in (data if isinstance(data, list) else [data])]
    return [call for call in found if call is not None] if None not in found else []


def _call(data: Any) -> tuple[str, str] | None:
    """Name and arguments of an object in one of the shapes that are in use."""
    if isinstance(data, Mapping) and isinstance(data.get("function"), Mapping):
        data = data["function"]
    if not isinstance(data, Mapping) or not _is_name(data.get("name")):
        return None
    given = next((data[word] for word in ARGUMENTS if word in data), None)
    if given is None:
        # A call without arguments says no more than its name; other members could be arguments gone astray.
        return (data["name"], "{}") if set(data) <= {"name", "id", "type", *ARGUMENTS} else None
    arguments = _object(given)
    return None if arguments is None else (data["name"], arguments)


def _object(given: Any) -> str | None:
    """Arguments as the text of an object; some models write them as a string."""
    try:
        data = json.loads(given) if isinstance(given, str) else given
        return dumped(data) if isinstance(data, dict) else None
    except (ValueError, RecursionError):
        return None
