"""What holds of every parser of tool calls, whatever a model writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import replies
from optiq.serve.parse.deltas import Delta, gather
from optiq.serve.parse.tools import FORMATS
from optiq.serve.parse.tools.parser import ToolParser
from optiq.serve.parse.tools.schema import Tools

TOOLS = Tools(replies.TOOLS)
WORDS = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=12)
# What a Python or JSON literal can carry; integers within float precision, for 5.0 and 5 are one number in JSON.
VALUES = st.recursive(
    st.one_of(WORDS, st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


def _parse(name: str, parts: list[str]) -> list[Delta]:
    return replies.deltas(ToolParser(FORMATS[name], TOOLS, replies.numbered()), parts)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=400)
@given(text=replies.texts, places=replies.cuts)
def test_any_text(name: str, text: str, places: list[int]) -> None:
    """No exception; the same for any chunking; no call, no change; the arguments of whole calls are JSON objects."""
    whole = _parse(name, [text])
    assert _parse(name, replies.pieces(text, places)) == whole
    message = gather(whole)
    if not message.calls:
        assert message.content == text
    for call in message.calls:
        assert isinstance(json.loads(call.arguments), dict) and call.name


@pytest.mark.parametrize(("name", "write"), replies.WRITERS, ids=lambda value: getattr(value, "__name__", value))
@settings(max_examples=60)
@given(data=st.data(), places=replies.cuts)
def test_a_damaged_call_is_text_or_a_call(name: str, write: Any, data: st.DataObject, places: list[int]) -> None:
    """One cut, one inserted mark: what is told and what was written agree, however the text comes."""
    text = write("get_weather", {"city": 'Os"lo', "days": 3, "places": ["a", {"b": None}]})
    place = data.draw(st.integers(0, len(text)))
    text = text[:place] + data.draw(st.sampled_from(["", *replies.MARKS])) + text[place + data.draw(st.integers(0, 3)) :]
    whole = _parse(name, [text])
    assert _parse(name, replies.pieces(text, places)) == _parse(name, list(text)) == whole
    message = gather(whole)
    assert message.calls or message.content == text
    for call in message.calls:
        assert isinstance(json.loads(call.arguments), dict)


@pytest.mark.parametrize(("name", "write"), replies.WRITERS, ids=lambda value: getattr(value, "__name__", value))
@settings(max_examples=60)
@given(
    calls=st.lists(st.dictionaries(st.sampled_from(["a", "b_c", "d2"]), VALUES, max_size=3), min_size=1, max_size=3),
    before=st.sampled_from(["", "Let me see.", "1 < 2 [x]\n\n"]),
    places=replies.cuts,
)
def test_what_is_written_is_read_back(name: str, write: Any, calls: list[dict[str, Any]], before: str, places: list[int]) -> None:
    if name == "qwen-xml":  # bare text: values have a type by the schema alone
        calls = [{"text": json.dumps(call)} for call in calls]
    text = before + "\n".join(write("write_file", call) for call in calls) + "\n"
    message = gather(_parse(name, replies.pieces(text, places)))
    assert message.content == before.rstrip()
    assert [(call.name, json.loads(call.arguments)) for call in message.calls] == [("write_file", call) for call in calls]


@given(text=WORDS, more=WORDS, places=replies.cuts)
def test_text_arguments_of_the_xml_form_come_through_exactly(text: str, more: str, places: list[int]) -> None:
    """Also where they look like numbers, tags or JSON."""
    for value in (text, f"{text}<tool>{more}", f"{text}</parameter>{more}.", f"\n{text}\n\n", f"{text}\\n{more}", "5", "null"):
        written = replies.qwen_xml("write_file", {"text": value})
        (call,) = gather(_parse("qwen-xml", replies.pieces(written, places))).calls
        assert json.loads(call.arguments) == {"text": value}


@pytest.mark.parametrize(("name", "write"), replies.WRITERS, ids=lambda value: getattr(value, "__name__", value))
def test_long_text_streams(name: str, write: Any) -> None:
    """An argument of many words is passed on while it is written, not at its end."""
    text = write("write_file", {"text": "word and " * 200})
    parser = ToolParser(FORMATS[name], TOOLS)
    waiting, longest = 0, 0
    for piece in replies.pieces(text, range(0, len(text), 7)):
        waiting = 0 if parser.add(piece) else waiting + 1
        longest = max(longest, waiting)
    # The header may wait: an array's first word, a tag and a name, and the array's members after the arguments.
    assert longest <= 12
    assert gather(parser.finish()).content == ""
