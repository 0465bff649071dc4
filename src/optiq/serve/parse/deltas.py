"""What a reply is made of, as typed pieces in the order in which they were written, and how they add up. Data alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reasoning:
    """Text that the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call of a tool begins.

    Args:
        index: of the call in this reply, from 0; its arguments and its end carry the same.
        id: names the call when its result comes back.
        name: of the tool.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of a call's arguments; the texts of one call that is whole add up to one JSON object."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """A call is over.

    Args:
        index: of the call.
        broken: "" for a whole call. Otherwise the text that the model wrote, of a call that turned out malformed or was cut
            off after it had begun: what was told of its arguments is no JSON object, the call must not run, and whoever
            shows the reply shows this text.
    """

    index: int
    broken: str = ""


Delta = Reasoning | Content | CallStart | CallArguments | CallEnd


@dataclass(frozen=True)
class Call:
    """A whole call: id, the tool's name, its arguments as the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """A whole reply."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[Call, ...] = field(default=())


def merge(deltas: Iterable[Delta]) -> list[Delta]:
    """The same deltas with neighbours of one kind joined: what is left of them when the chunking is forgotten."""
    merged: list[Delta] = []
    for delta in deltas:
        last = merged[-1] if merged else None
        if isinstance(delta, Reasoning) and isinstance(last, Reasoning):
            merged[-1] = Reasoning(last.text + delta.text)
        elif isinstance(delta, Content) and isinstance(last, Content):
            merged[-1] = Content(last.text + delta.text)
        elif isinstance(delta, CallArguments) and isinstance(last, CallArguments) and last.index == delta.index:
            merged[-1] = CallArguments(last.index, last.text + delta.text)
        else:
            merged.append(delta)
    return merged


def gather(deltas: Iterable[Delta]) -> Message:
    """The reply that deltas add up to; a broken call is text of its content."""
    reasoning, content = "", ""
    calls: dict[int, Call] = {}
    for delta in merge(deltas):
        match delta:
            case Reasoning(text):
                reasoning += text
            case Content(text):
                content += text
            case CallStart(index, id, name):
                calls[index] = Call(id, name, "")
            case CallArguments(index, text):
                calls[index] = Call(calls[index].id, calls[index].name, calls[index].arguments + text)
            case CallEnd(index, broken):
                if broken:
                    content += broken
                    del calls[index]
    return Message(reasoning, content, tuple(calls.values()))
