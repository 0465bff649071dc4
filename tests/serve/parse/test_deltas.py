"""How deltas add up."""

from __future__ import annotations

from optiq.serve.parse.deltas import Call, CallArguments, CallEnd, CallStart, Content, Message, Reasoning, gather, merge


def test_neighbours_of_one_kind_join() -> None:
    parts = [Reasoning("a"), Reasoning("b"), Content("c"), CallArguments(0, "{"), CallArguments(0, "}"), CallArguments(1, "{")]
    assert merge(parts) == [Reasoning("ab"), Content("c"), CallArguments(0, "{}"), CallArguments(1, "{")]
    assert parts[0] == Reasoning("a")


def test_a_broken_call_is_content_in_its_place() -> None:
    parts = [
        Reasoning("r"),
        Content("a "),
        CallStart(0, "x", "f"),
        CallArguments(0, '{"k'),
        CallEnd(0, broken='[f {"k'),
        Content(" b"),
        CallStart(1, "y", "g"),
        CallArguments(1, "{"),
        CallArguments(1, "}"),
        CallEnd(1),
    ]
    assert gather(parts) == Message("r", 'a [f {"k b', (Call("y", "g", "{}"),))
