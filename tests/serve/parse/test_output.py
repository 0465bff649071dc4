"""A whole reply: reasoning, then answer, then calls, in any chunking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import replies
from optiq.errors import InputError
from optiq.models.thinking import THINK
from optiq.serve.parse.deltas import CallArguments, CallEnd, CallStart, Content, Message, Reasoning, gather
from optiq.serve.parse.output import Output, Shape
from optiq.serve.parse.tools import FORMATS
from optiq.serve.parse.tools.schema import Tools

TOOLS = Tools(replies.TOOLS)
QWEN = Shape(THINK, opened=True, format="qwen-xml", tools=TOOLS)
CALL = replies.qwen_xml("get_weather", {"city": "Oslo"})


def _message(shape: Shape, text: str) -> Message:
    found = [gather(replies.deltas(Output(shape, replies.numbered()), parts)) for parts in ([text], list(text))]
    assert found[0] == found[1]
    return found[0]


def test_one_reply() -> None:
    text = f"\nThey want weather.\n</think>\n\nI ask.\n\n{CALL}\n{CALL}\n"
    assert replies.deltas(Output(QWEN, replies.numbered()), list(text)) == [
        Reasoning("They want weather."),
        Content("I ask."),
        CallStart(0, "id0", "get_weather"),
        CallArguments(0, '{"city": "Oslo"}'),
        CallEnd(0),
        CallStart(1, "id1", "get_weather"),
        CallArguments(1, '{"city": "Oslo"}'),
        CallEnd(1),
    ]


@pytest.mark.parametrize("format", [None, *FORMATS])
@settings(max_examples=80)
@given(text=replies.texts, places=replies.cuts, opened=st.booleans(), thinks=st.booleans())
def test_any_text(format: str | None, text: str, places: list[int], opened: bool, thinks: bool) -> None:
    shape = Shape(THINK if thinks else None, opened, format, TOOLS)
    whole = replies.deltas(Output(shape, replies.numbered()), [text])
    assert replies.deltas(Output(shape, replies.numbered()), replies.pieces(text, places)) == whole
    message = gather(whole)
    assert all(isinstance(json.loads(call.arguments), dict) for call in message.calls)
    if not thinks and not message.calls:
        assert message.content == text


def test_a_request_without_tools_has_no_calls() -> None:
    text = f"So it is written: {CALL}"
    assert _message(Shape(format="qwen-xml"), text) == Message("", text)
    assert _message(Shape(format=None, tools=TOOLS), text) == Message("", text)
    assert Output(Shape()).add("") == []


def test_calls_in_the_reasoning_are_plans() -> None:
    message = _message(QWEN, f"I could do {CALL}.\n</think>\n\nNo.")
    assert message == Message(f"I could do {CALL}.", "No.")
    assert _message(QWEN, f"I could do {CALL} or not").calls == ()


def test_a_reply_that_forgot_to_end_its_reasoning_and_stopped_after_a_call_has_that_call() -> None:
    message = _message(QWEN, f"A plan {CALL} and now:\n{CALL}\n")
    assert [(call.id[:2], json.loads(call.arguments)) for call in message.calls] == [("id", {"city": "Oslo"})]
    assert message.reasoning.startswith("A plan <tool_call>") and message.content == ""
    found = replies.deltas(Output(QWEN, replies.numbered()), [f"Hm. {CALL}{CALL}"])
    assert [delta.index for delta in found if isinstance(delta, CallStart)] == [0, 1]
    unknown = replies.qwen_xml("delete_all", {})
    assert _message(QWEN, f"Now {unknown}").calls == ()
    assert _message(QWEN, f"Now {CALL[:-30]}").calls == ()
    assert _message(Shape(THINK, True), f"Now {CALL}").calls == ()


def test_a_model_without_a_template_writes_text() -> None:
    assert Shape.of("", "Once", replies.TOOLS) == Shape(tools=TOOLS)


def test_thinking_is_known_while_it_lasts() -> None:
    output = Output(QWEN)
    assert output.thinking
    output.add("so</thi")
    assert output.thinking
    output.add("nk>")
    assert not output.thinking and not Output(Shape()).thinking


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(InputError, match="unknown format of tool calls 'json_tools'; known: qwen-xml, hermes"):
        Output(Shape(format="json_tools", tools=TOOLS))


@pytest.mark.parametrize("thinking", [True, False])
def test_what_the_embedded_template_writes_of_a_reply_is_read_back(tiny_model: Path, thinking: bool) -> None:
    """The template is the reference: the turn that it writes after its own prompt gives the message it was made from."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    source = (tiny_model / "chat_template.jinja").read_text()
    template = environment.from_string(source)
    arguments = {"city": "Oslo & Bergen", "days": 3, "hourly": True, "places": ["a", {"b": 1.5}], "unit": None}
    question = [{"role": "user", "content": "Weather?"}]
    reply = {
        "role": "assistant",
        "content": "I ask.",
        "tool_calls": [{"function": {"name": "get_weather", "arguments": arguments}}],
    }
    reply["reasoning_content"] = "They want\n\nweather." if thinking else ""
    prompt = template.render(messages=question, tools=replies.TOOLS, add_generation_prompt=True, enable_thinking=thinking)
    text = template.render(messages=[*question, reply], tools=replies.TOOLS)
    assert text.startswith(prompt)
    turn = text[len(prompt) :].partition("<|im_end|>")[0]
    shape = Shape.of(source, prompt, replies.TOOLS)
    assert (shape.tags, shape.opened, shape.format) == (THINK, thinking, "qwen-xml")
    message = _message(shape, turn)
    assert (message.reasoning, message.content) == (reply["reasoning_content"], "I ask.")
    (call,) = message.calls
    assert json.loads(call.arguments) == arguments
