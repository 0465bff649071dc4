"""Each format by example: what models write, what they get wrong, what is a call and what stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest

import replies
from optiq.serve.parse.deltas import CallArguments, CallEnd, CallStart, Content, gather
from optiq.serve.parse.tools import FORMATS, mistral
from optiq.serve.parse.tools.parser import ToolParser
from optiq.serve.parse.tools.schema import Tools

TOOLS = Tools(replies.TOOLS)
Calls = list[tuple[str, dict[str, Any]]]
OSLO: Calls = [("get_weather", {"city": "Oslo"})]
HEAD = "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo"


def _read(name: str, text: str) -> tuple[str, Calls]:
    """Content and calls of a text, which are the same however it is cut."""
    found = [replies.deltas(ToolParser(FORMATS[name], TOOLS, replies.numbered()), parts) for parts in ([text], list(text))]
    assert found[0] == found[1]
    message = gather(found[0])
    return message.content, [(call.name, json.loads(call.arguments)) for call in message.calls]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"Hi.\n\n{HEAD}\n</parameter>\n</function>\n</tool_call>\n", "Hi.", OSLO),
        (f"{HEAD}\n</parameter>\n</function>\n</tool_call>\n\nDone.", "\n\nDone.", OSLO),
        (f"{HEAD}\n</parameter>\n</function>", "", OSLO),  # the last word is missing
        (f"{HEAD}\n</parameter>\n</tool_call>", "", OSLO),  # a closing tag is missing
        (f"{HEAD}\n</function>\n</tool_call>", "", OSLO),  # another one is
        (
            f"{HEAD}\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            "",
            [("get_weather", {"city": "Oslo", "days": 3})],
        ),
        (HEAD.removeprefix("<tool_call>\n") + "\n</parameter>\n</function>\n</tool_call>", "", OSLO),  # the outer tag is missing
        ("<function=get_weather></function> and", " and", [("get_weather", {})]),
        ('<tool_call><function="get_weather"><parameter=city>Oslo</parameter></function></tool_call>', "", OSLO),
        ("<tool_call>\n<function=unknown>\n</function>\n</tool_call>", "", [("unknown", {})]),
        ("<tool_call>\n<function=get_weather>\n</tool_call>", "", [("get_weather", {})]),
        (
            "<tool_call>\n<function=write_file>\n<parameter=text>\n</parameter>\n</function>\n</tool_call>",
            "",
            [("write_file", {"text": ""})],
        ),
    ],
)
def test_qwen_xml(text: str, content: str, calls: Calls) -> None:
    assert _read("qwen-xml", text) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "A <tool_call> is written so: <function=name>.",
        "<function=unknown>\n</function>",  # without the outer tag and unknown
        "<tool_call>\n<function=get_weather> then",
        f"{HEAD}\nand so on",  # cut off: more of the value could come
        f"{HEAD}\n</parameter>\n",  # cut off: more parameters could come
        f"{HEAD}\n</parameter>\n<parameter=da",
        "<tool_call>\n<function=>\n</function>\n</tool_call>",
        '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>',
        "<tool_",
        "a \n\n",
    ],
)
def test_what_is_no_call_in_qwen_xml_stays_text(text: str) -> None:
    assert _read("qwen-xml", text) == (text, [])


@pytest.mark.parametrize(
    ("argument", "text", "value"),
    [
        ("city", "5", "5"),
        ("city", "", ""),
        ("city", "a\nb\n", "a\nb\n"),
        ("city", 'a " \\ </tool_call> </parameter> z', 'a " \\ </tool_call> </parameter> z'),
        ("days", "5", 5),
        ("days", "5.0", 5),
        ("days", "five", "five"),
        ("wind", "-2.5e3", -2500.0),
        ("wind", ".5", 0.5),
        ("wind", "3", 3),
        ("wind", "nan", "nan"),
        ("hourly", "True", True),
        ("hourly", "false", False),
        ("hourly", "1", "1"),
        ("places", "[1, 'a', None,]", [1, "a", None]),
        ("places", "1, 2", "1, 2"),
        ("options", '{"a": {"b": [true]}}', {"a": {"b": [True]}}),
        ("options", "{'a': True}", {"a": True}),
        ("options", "{broken", "{broken"),
        ("unit", "null", None),
        ("unit", "None", None),
        ("unit", "C", "C"),
        ("unlisted", "7", "7"),
        ("unlisted", '{"a": 1}', {"a": 1}),
        ("unlisted", "[x]", "[x]"),
    ],
)
def test_the_schema_types_the_values_of_qwen_xml(argument: str, text: str, value: Any) -> None:
    written = f"<tool_call>\n<function=get_weather>\n<parameter={argument}>\n{text}\n</parameter>\n</function>\n</tool_call>"
    (call,) = _read("qwen-xml", written)[1]
    assert call[1] == {argument: value} and type(call[1][argument]) is type(value)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('Hi. <tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>', "Hi.", OSLO),
        ('<tool_call>{"name": "get_weather", "parameters": {"city": "Oslo"}}</tool_call>', "", OSLO),
        ('<tool_call>{"arguments": {"city": "Oslo"}, "name": "get_weather"}</tool_call>', "", OSLO),
        ('<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>', "", OSLO),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": 7}</tool_call>', "", OSLO),
        (
            '<tool_call>{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}</tool_call>',
            "",
            OSLO,
        ),
        ("<tool_call>{'name': 'get_weather', 'arguments': {'city': 'Oslo'}}</tool_call>", "", OSLO),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo",},}</tool_call>', "", OSLO),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}</tool_call>', "", OSLO),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"</tool_call>', "", OSLO),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}}}</tool_call>', "", OSLO),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}', "", OSLO),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}} is it', " is it", OSLO),
        ('<tool_call>{"name": "get_weather"}</tool_call>', "", [("get_weather", {})]),
        ('<tool_call>[{"name": "get_weather"}, {"name": "g"}]</tool_call>', "", [("get_weather", {}), ("g", {})]),
        ('<tool_call>{"name": "f", "arguments": {}}\n{"name": "g", "arguments": {}}</tool_call>', "", [("f", {}), ("g", {})]),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "one\ntwo\\d \\\'", "b": [1_000, .5, None]}}</tool_call>',
            "",
            [("f", {"a": "one\ntwo\\d '", "b": [1000, 0.5, None]})],
        ),
        ('<tool_call>{"name": "f", "arguments": {"a": """say "hi" now"""}}</tool_call>', "", [("f", {"a": 'say "hi" now'})]),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', "", [("f", {"a": "</tool_call>"})]),
        (
            '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>',
            "",
            [("f", {}), ("g", {})],
        ),
    ],
)
def test_hermes(text: str, content: str, calls: Calls) -> None:
    assert _read("hermes", text) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "Write <tool_call> and then JSON.",
        '<tool_call>{"name": "f", "arguments": {"a": "print("x")"}}</tool_call>',  # where the string ends is a guess
        '<tool_call>{"name": "f", "arguments": {"a": "cut',
        '<tool_call>{"name": "f", "arguments": {"a": 1',
        '<tool_call>{"name": "f", "city": "Oslo"}</tool_call>',  # arguments gone astray?
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 1e999}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": nan}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 5000 + "</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>",
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
    ],
)
def test_what_is_no_call_in_hermes_stays_text(text: str) -> None:
    assert _read("hermes", text) == (text, [])


def test_arguments_are_text_that_utf_8_can_carry() -> None:
    for arguments in ('{"a": "\\ud83d"}', '"{\\"a\\": \\"\\\\ud83d\\"}"', '{"a": "\\U0000d83d"}'):
        text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
        (call,) = gather(replies.deltas(ToolParser(FORMATS["hermes"], TOOLS), [text])).calls
        assert call.arguments.encode() == b'{"a": "\\ud83d"}'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('Hi.[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}]', "Hi.", OSLO),
        (
            '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}, {"name": "g", "arguments": {}}] ok',
            " ok",
            [("f", {}), ("g", {})],
        ),
        ('[TOOL_CALLS][{"name": "f", "arguments": {}}', "", [("f", {})]),
        ('[TOOL_CALLS]{"name": "f", "arguments": {}}', "", [("f", {})]),
        ('[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}', "", OSLO),
        ('[TOOL_CALLS]get_weather{"city": "Oslo"}', "", OSLO),
        ("[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]g[ARGS]{}", "", [("f", {}), ("g", {})]),
        ('[TOOL_CALLS][{"name": "f", "arguments": {}}, nonsense]', ", nonsense]", [("f", {})]),
    ],
)
def test_mistral(text: str, content: str, calls: Calls) -> None:
    assert _read("mistral", text) == (content, calls)


@pytest.mark.parametrize("text", ["[TOOL_CALLS]", "[TOOL_CALLS] []", "[TOOL_CALLS] f x", '[TOOL_CALLS]f[ARGS]{"a": ', "[TOOL_"])
def test_what_is_no_call_in_mistral_stays_text(text: str) -> None:
    assert _read("mistral", text) == (text, [])
    before = "[TOOL_CALLS]f[ARGS]{}"
    assert _read("mistral", before + "." + text) == ("." + text, [("f", {})])


def test_ids_of_mistral() -> None:
    found = replies.deltas(ToolParser(FORMATS["mistral"], TOOLS), ["[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]g{}"])
    first, second = gather(found).calls
    assert first.id == "abcdefghi" and len(second.id) == 9 and second.id.isalnum() and mistral.new_id() != mistral.new_id()
    (other,) = gather(replies.deltas(ToolParser(FORMATS["hermes"], TOOLS), [replies.hermes("f", {})])).calls
    assert other.id.startswith("call_") and len(other.id) == 29


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('[get_weather(city="Oslo")]', "", OSLO),
        ('Hi.\n [get_weather(city="Oslo")]', "Hi.", OSLO),
        ('<|python_start|>[get_weather(city="Oslo")]<|python_end|>', "", OSLO),
        ('See <|tool_call_start|>[get_weather(city="Oslo")]<|tool_call_end|> now', "See now", OSLO),
        (
            "[get_weather(city='Oslo', days=3, places=['a', {'b': None}], hourly=True), write_file()]",
            "",
            [("get_weather", {"city": "Oslo", "days": 3, "places": ["a", {"b": None}], "hourly": True}), ("write_file", {})],
        ),
        ('[get_weather(city="Oslo",),]', "", OSLO),
        ('[get_weather(city="5", days="3", wind = ".5")]', "", [("get_weather", {"city": "5", "days": 3, "wind": 0.5})]),
        ('[get_weather(city="Oslo")', "", OSLO),
        ("[write_file(text='''a 'b'\n\\x41\\u0042''')]", "", [("write_file", {"text": "a 'b'\nAB"})]),
        ("[get_weather( ), other()]", ", other()]", [("get_weather", {})]),
    ],
)
def test_pythonic(text: str, content: str, calls: Calls) -> None:
    assert _read("pythonic", text) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2] and [x](y) and [get_weather]",
        'See [get_weather(city="Oslo")] there',  # within a line
        '[unknown(city="Oslo")]',
        '[get_weather("Oslo")]',  # which argument is meant is a guess
        '[get_weather(city="Oslo"',
        '[get_weather(city="Oslo" days=3)]',
        "[get_weather(city=oslo)]",
        "<|python_start|>print(1)<|python_end|>",
    ],
)
def test_what_is_no_call_in_pythonic_stays_text(text: str) -> None:
    assert _read("pythonic", text) == (text, [])


def test_deltas_of_a_call_that_breaks() -> None:
    text = 'A <tool_call>{"name": "f", "arguments": {"a": "b" c}}</tool_call>'
    source = ' <tool_call>{"name": "f", "arguments": {"a": "b" '
    assert replies.deltas(ToolParser(FORMATS["hermes"], TOOLS, replies.numbered()), [text]) == [
        Content("A"),
        CallStart(0, "id0", "f"),
        CallArguments(0, '{"a": "b"'),
        CallEnd(0, broken=source),
        Content("c}}</tool_call>"),
    ]


def test_a_call_is_told_as_soon_as_its_name_is_certain() -> None:
    parser = ToolParser(FORMATS["qwen-xml"], TOOLS, replies.numbered())
    assert parser.add("<tool_call>\n<function=write_file>\n<parameter=text>\n") == [
        CallStart(0, "id0", "write_file"),
        CallArguments(0, '{"text": '),
        CallArguments(0, '"'),
    ]
    assert parser.add("line one\nline ") == [CallArguments(0, "line one"), CallArguments(0, "\\n"), CallArguments(0, "line ")]
    assert parser.add("two\n</parameter>\n</function>\n") == [CallArguments(0, "two"), CallArguments(0, '"')]
    assert parser.add("</tool_call>") == [CallArguments(0, "}"), CallEnd(0)]
