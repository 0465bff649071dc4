"""What holds of every parser of tool calls, whatever a model writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import replies
from optiq.serve.parse.deltas import CallEnd, Delta, gather
from optiq.serve.parse.tools import FORMATS
from optiq.serve.parse.tools.parser import ToolParser
from optiq.serve.parse.tools.schema import Tools

TOOLS = Tools(replies.TOOLS)
WORDS = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=12)
UNTAGGED = st.text(alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="<"), max_size=12)
# What a Python or JSON literal can carry; integers within float precision, for 5.0 and 5 are one number in JSON.
VALUES = st.recursive(
    st.one_of(WORDS, st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


def _parse(name: str, parts: list[str]) -> list[Delta]:
    return replies.deltas(ToolParser(FORMATS[name], TOOLS, replies.numbered()), parts)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150)
@given(data=st.data(), places=replies.cuts)
def test_any_text(name: str, data: st.DataObject, places: list[int]) -> None:
    """No exception; the same for any chunking; what is no call stays as it is; whole calls have JSON objects as arguments."""
    text = data.draw(st.one_of(replies.near_calls(name), replies.near_calls(name), replies.texts))
    whole = _parse(name, [text])
    assert _parse(name, replies.pieces(text, places)) == _parse(name, list(text)) == whole
    message = gather(whole)
    if not message.calls:
        assert message.content == text
    for call in message.calls:
        assert isinstance(json.loads(call.arguments), dict) and call.name
    _assert_content_stands_in(message.content, text)


def _assert_content_stands_in(content: str, text: str) -> None:
    """Content is the text with calls taken out: nothing is made up, nothing stands in another order."""
    rest = iter(text)
    assert all(char in rest for char in content)


@pytest.mark.parametrize("name", FORMATS)
def test_the_random_texts_hold_calls_and_broken_ones(name: str) -> None:
    """Else the properties would say nothing."""
    whole, broken = 0, 0

    @settings(max_examples=100, database=None, derandomize=True)
    @given(replies.near_calls(name))
    def count(text: str) -> None:
        nonlocal whole, broken
        found = _parse(name, [text])
        whole += bool(gather(found).calls)
        broken += any(isinstance(delta, CallEnd) and delta.broken != "" for delta in found)

    count()
    assert whole >= 30 and broken >= 10, (whole, broken)


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


@settings(max_examples=50)
@given(text=UNTAGGED, more=UNTAGGED, places=replies.cuts)
def test_text_arguments_of_the_xml_form_come_through_exactly(text: str, more: str, places: list[int]) -> None:
    """Also where they look like numbers, tags or JSON; but for what would go on as the call does."""
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
