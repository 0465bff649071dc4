"""Requests and events as JSON values, for the way between the server's process and the engine's. No MLX.

    frame = length of the rest, 4 bytes big endian | a JSON array, its first item says what it is (`serve.worker` lists them)

JSON, so that reading a frame can build nothing but numbers, texts and the dataclasses of `serve.request`: neither side runs
code because of what the other one sent. A kind of caches travels as its name and its recipe; one that was read from a file is
known to the engine by its name.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, astuple
from typing import Any

from optiq.errors import FormatError, InputError, ModelError, OptiqError, ResourceError
from optiq.generate.sampling import Sampling
from optiq.kv.options import Maker
from optiq.kv.recipe import Recipe
from optiq.serve.grammar_spec import GrammarSpec
from optiq.serve.request import Event, Finish, Finished, Load, Logprob, Progress, Reason, Refused, Request, Scored, Token, Usage

HEAD = struct.Struct(">I")
MOST_BYTES = 1 << 28  # of a frame: a prompt of millions of tokens is far below
Value = list[Any]

_ERRORS: dict[str, type[OptiqError]] = {kind.__name__: kind for kind in (InputError, ModelError, ResourceError, FormatError)}


def pack(message: Value) -> bytes:
    """A message as a frame."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return HEAD.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Bytes that follow the head of a frame.

    Raises:
        FormatError: more than any message has.
    """
    (length,) = HEAD.unpack(head)
    if length > MOST_BYTES:
        raise FormatError(f"a message of {length} bytes between server and engine, expected at most {MOST_BYTES}")
    return int(length)


def unpack(body: bytes) -> Value:
    """The message of a frame without its head.

    Raises:
        FormatError: not one.
    """
    try:
        found = json.loads(body)
    except ValueError as error:
        raise FormatError(f"a message between server and engine is not JSON ({error})") from None
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise FormatError("a message between server and engine is not an array that begins with its name")
    return found


def from_request(request: Request) -> dict[str, Any]:
    """A request as JSON."""
    caches, grammar = request.caches, request.grammar
    sampling = asdict(request.sampling) | {"logit_bias": list(request.sampling.logit_bias.items())}
    return {
        "prompt": request.prompt,
        "sampling": sampling,
        "max_tokens": request.max_tokens,
        "stop_ids": list(request.stop_ids),
        "stops": request.stops,
        "cuts": request.cuts,
        "caches": [caches.text, None if caches.recipe is None else asdict(caches.recipe)],
        "adapter": request.adapter,
        "grammar": None if grammar is None else [grammar.kind, grammar.text],
        "after": request.after,
        "opening": request.opening,
        "thinking_budget": request.thinking_budget,
        "logprobs": request.logprobs,
        "prompt_logprobs": request.prompt_logprobs,
        "template": request.template,
        "draft": request.draft,
    }


def to_request(value: dict[str, Any], makers: dict[str, Maker]) -> Request:
    """The request of `from_request`.

    Args:
        value: JSON.
        makers: kinds of caches by name, for those that travel as a name alone.

    Raises:
        InputError: it asks for what a request cannot be, or for caches that nobody knows.
    """
    text, recipe = value["caches"]
    if recipe is None and text and text not in makers:
        raise InputError(f"caches {text!r} are not known to the engine; known: {', '.join(makers) or 'none'}")
    sampling = value["sampling"] | {"logit_bias": {int(token): float(bias) for token, bias in value["sampling"]["logit_bias"]}}
    known = makers.get(text, Maker("")) if recipe is None else Maker(text, Recipe(**recipe))
    lists = {name: tuple(value[name]) for name in ("prompt", "stops", "cuts", "after")}
    grammar = None if value["grammar"] is None else GrammarSpec(*value["grammar"])
    names = ("max_tokens", "adapter", "opening", "thinking_budget", "logprobs", "prompt_logprobs", "template", "draft")
    same = {name: value[name] for name in names}
    parts: dict[str, Any] = {**lists, **same, "sampling": Sampling(**sampling), "grammar": grammar, "caches": known}
    return Request(**parts, stop_ids=frozenset(value["stop_ids"]))


def from_event(event: Event) -> Value:
    """An event as JSON."""
    if isinstance(event, Token):
        if event.logprob is None:
            return ["token", event.request, event.id, event.text]
        return ["token", event.request, event.id, event.text, event.logprob, [[top.token, top.logprob] for top in event.top]]
    if isinstance(event, Progress):
        scored = [[one.token, one.logprob, [[top.token, top.logprob] for top in one.top]] for one in event.scored]
        return ["progress", event.request, event.read, event.total, event.cached, scored]
    usage = astuple(event.usage)
    return ["finished", event.request, event.finish, usage, event.text, event.stopped_by, event.error]


def to_event(value: Value) -> Event:
    """The event of `from_event`.

    Raises:
        FormatError: not one.
    """
    try:
        match value:
            case ["token", request, token, text]:
                return Token(request, token, text)
            case ["token", request, token, text, logprob, top]:
                return Token(request, token, text, logprob, tuple(Logprob(*one) for one in top))
            case ["progress", request, read, total, cached, scored]:
                told = (Scored(token, logprob, tuple(Logprob(*one) for one in top)) for token, logprob, top in scored)
                return Progress(request, read, total, cached, tuple(told))
            case ["finished", request, finish, usage, text, stopped_by, error]:
                return Finished(request, Finish(finish), Usage(*usage), text, stopped_by, error)
    except (TypeError, ValueError) as problem:
        raise FormatError(f"an event from the engine cannot be read ({problem})") from None
    raise FormatError(f"an event from the engine is {value[:1]}, expected a token, progress or the end")


def from_error(error: OptiqError) -> Value:
    """An error as JSON: its class, a reason where it has one, its text."""
    reason = error.reason if isinstance(error, Refused) else None
    kind = next((name for name, known in _ERRORS.items() if isinstance(error, known)), "")
    return [kind, reason, str(error)]


def to_error(value: Value) -> OptiqError:
    """The error of `from_error`."""
    kind, reason, text = value
    if reason is not None:
        return Refused(Reason(reason), text)
    return _ERRORS.get(kind, OptiqError)(text)


def from_load(load: Load) -> dict[str, Any]:
    """How busy an engine is, as JSON."""
    return asdict(load)


def to_load(value: dict[str, Any]) -> Load:
    """The load of `from_load`."""
    return Load(**value)
