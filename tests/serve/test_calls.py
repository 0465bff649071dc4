"""Grammars of calls: what they allow is read back as calls whose arguments the schemas allow, in every format."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from optiq.errors import InputError
from optiq.serve import calls
from optiq.serve.calls import Tool
from optiq.serve.grammar import Compiler
from optiq.serve.grammar_spec import GrammarSpec
from optiq.serve.parse.deltas import gather
from optiq.serve.parse.tools import FORMATS
from optiq.serve.parse.tools.parser import ToolParser
from optiq.serve.parse.tools.schema import Tools
from serve_locally import tokenizer_of

END = {4076, 4078}
SCHEMAS: dict[str, dict[str, Any]] = {
    "move": {
        "type": "object",
        "properties": {
            "where": {"enum": ["up", "down"]},
            "steps": {"type": "integer", "minimum": 1, "maximum": 99},
            "fast": {"type": "boolean"},
            "note": {"$ref": "#/$defs/note"},
        },
        "required": ["where", "steps"],
        "$defs": {"note": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}},
        "additionalProperties": False,
    },
    "stop": {"type": "object", "properties": {}, "additionalProperties": False},
    "wait": {
        "type": "object",
        "properties": {"s": {"type": "number", "minimum": 0, "maximum": 9}},
        "additionalProperties": False,
    },
}
TOOLS = [Tool(name, schema) for name, schema in SCHEMAS.items()]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_of()


@pytest.fixture(scope="module")
def compiler(tokenizer: Any) -> Compiler:
    return Compiler(tokenizer, 4096, END)


def reply(compiler: Compiler, tokenizer: Any, spec: GrammarSpec, rng: np.random.Generator, most: int = 400) -> str | None:
    """A random text that the grammar allows; None where chance does not end it."""
    state, found = compiler.compile(spec).start(), list[int]()
    while len(found) < most:
        token = int(rng.choice(np.flatnonzero(state.mask())))
        if token in END:
            return str(tokenizer.decode(found, skip_special_tokens=False))
        state.advance(token)
        found.append(token)
        if state.finished:
            return str(tokenizer.decode(found, skip_special_tokens=False))
    return None


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("format", list(FORMATS))
def test_forced_calls_are_read_back(compiler: Compiler, tokenizer: Any, format: str, parallel: bool) -> None:
    spec = calls.grammar(format, TOOLS, tokenizer, required=True, parallel=parallel)
    parser_tools = Tools([{"name": name, "parameters": schema} for name, schema in SCHEMAS.items()])
    rng, counts = np.random.default_rng(1), list[int]()
    for _ in range(12):
        text = reply(compiler, tokenizer, spec, rng)
        if text is None:
            continue
        parser = ToolParser(FORMATS[format], parser_tools)
        message = gather(parser.add(text) + parser.finish())
        assert message.calls and not message.content, text
        for call in message.calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
        counts.append(len(message.calls))
    assert len(counts) >= 6 and (max(counts) > 1) == parallel


@pytest.mark.parametrize("format", list(FORMATS))
def test_text_is_free_where_no_call_is_needed(compiler: Compiler, tokenizer: Any, format: str) -> None:
    strict = [Tool("move", SCHEMAS["move"], strict=True)]
    state = compiler.compile(calls.grammar(format, strict, tokenizer, required=False, parallel=True)).start()
    for token in tokenizer.encode("Just a text, [with] {brackets}.\n", add_special_tokens=False):
        assert state.mask()[token]
        state.advance(token)
    assert state.accepts_end


def test_calls_or_an_answer(compiler: Compiler, tokenizer: Any) -> None:
    answer = GrammarSpec.json_schema({"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": False})
    spec = calls.grammar("hermes", TOOLS, tokenizer, required=False, parallel=False, answer=answer)
    for text, fits in [
        ('{"a": null}', True),
        ('{"a": 1}', False),
        ('<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>', True),
        ('<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>', False),
        ("text", False),
    ]:
        state = compiler.compile(spec).start()
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert (state.accepted(ids) == len(ids)) == fits, text


def test_schemas_that_cannot_be_met(tokenizer: Any) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    for format in FORMATS:
        calls.grammar(format, [Tool("f", odd)], tokenizer, required=True, parallel=False)
        with pytest.raises(InputError, match="tool 'f'.*uniqueItems"):
            calls.grammar(format, [Tool("f", odd, strict=True)], tokenizer, required=True, parallel=False)
    bare = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}}
    with pytest.raises(InputError, match=r"f\.a.*maxLength"):
        calls.grammar("qwen-xml", [Tool("f", bare, strict=True)], tokenizer, required=True, parallel=False)
