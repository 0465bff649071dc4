"""Replies of models for tests: random texts full of marks, random chunkings, calls written in each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hypothesis import strategies as st

from optiq.serve.parse.deltas import Delta, merge

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "wind": {"type": "number"},
                    "hourly": {"type": "boolean"},
                    "places": {"type": "array"},
                    "options": {"type": "object"},
                    "unit": {"type": ["string", "null"]},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "write_file", "parameters": {"properties": {"text": {"type": "string"}}}}},
]

# What the formats are made of, and what is nearly that: any sequence of these is a reply that some model could write.
MARKS = (
    "<tool_call>", "</tool_call>", "<tool_call", "<function=get_weather>", "<function=unknown>", "</function>", "<function=",
    "<parameter=city>", "<parameter=days>", "<parameter=", "</parameter>", "<think>", "</think>", "</thi", "[TOOL_CALLS]",
    "[ARGS]", "[CALL_ID]", "[TOOL", "<|python_start|>", "<|python_end|>", "[get_weather(", "get_weather", "write_file",
    '{"name": "get_weather", "arguments": {', '{"name": ', '"arguments": ', "'name'", '"city": ', "city=", "days=", '"Oslo"',
    '"""', '"', "'", "{", "}", "[", "]", "(", ")", ",", ":", "=", "\\", "\\u00", "\\ud83d", "\\n", "\n", "\n\n", " ", "\t", "\r",
    "5", "-.5", "1e5", "True", "null", "nan", "word", "Zürich", "日本", "😀", "\x00",
)  # fmt: skip

texts = st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=4)), max_size=30).map("".join)
cuts = st.lists(st.integers(0, 200), max_size=12)


class Parser(Protocol):
    """What takes pieces of text."""

    def add(self, piece: str) -> list[Delta]: ...

    def finish(self) -> list[Delta]: ...


def pieces(text: str, places: Sequence[int]) -> list[str]:
    """The text cut at some places, which wrap around."""
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def deltas(parser: Parser, parts: Sequence[str]) -> list[Delta]:
    """All that a parser tells of a text, merged."""
    return merge([delta for part in parts for delta in parser.add(part)] + parser.finish())


def numbered() -> Callable[[], str]:
    """Ids that are the same in every run."""
    count = iter(range(1 << 30))
    return lambda: f"id{next(count)}"


def qwen_xml(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as the template of Qwen3.5 writes it."""
    lines = [f"<tool_call>\n<function={name}>"]
    for key, value in arguments.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
        lines.append(f"<parameter={key}>\n{text}\n</parameter>")
    return "\n".join([*lines, "</function>\n</tool_call>"])


def hermes(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as the template of Qwen3 writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'


def mistral(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as newer models of Mistral write it."""
    return f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}"


def mistral_array(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as older models of Mistral write it."""
    return f'[TOOL_CALLS] [{{"name": "{name}", "arguments": {json.dumps(arguments)}, "id": "abcdefghi"}}]'


def pythonic(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as Llama writes it."""
    return f"<|python_start|>[{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]<|python_end|>"


WRITERS = (
    ("qwen-xml", qwen_xml),
    ("hermes", hermes),
    ("mistral", mistral),
    ("mistral", mistral_array),
    ("pythonic", pythonic),
)

CALLS = (
    ("get_weather", {"city": 'Os"lo\n', "days": 3, "places": ["a", {"b": None}], "wind": -0.5, "hourly": True}),
    ("write_file", {"text": "def f():\n    return '[x]'\n"}),
    ("get_weather", {}),
)


def near_calls(name: str) -> st.SearchStrategy[str]:
    """Replies full of calls in one format, many of them damaged: some characters cut out, a mark put in."""
    whole = [write(*call) for kind, write in WRITERS if kind == name for call in CALLS]

    def damaged(call: str, place: int, cut: int, mark: str) -> str:
        place %= len(call) + 1
        return call[:place] + mark + call[place + cut :]

    damage = st.builds(
        damaged, st.sampled_from(whole), st.integers(0, 300), st.integers(0, 4) | st.just(1000), st.sampled_from(["", *MARKS])
    )
    part = st.one_of(st.sampled_from(whole), damage, damage, st.sampled_from(MARKS), st.text(max_size=4))
    return st.lists(part, max_size=6).map("".join)
