"""What a tool's schema says about its arguments, in the shapes in which schemas come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq.serve.parse.tools.schema import Tools

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "properties", "a"]), inner, max_size=4
        ),
    ),
    max_leaves=12,
)


def _types(schema: Any, **root: Any) -> tuple[str, ...]:
    tool = {"function": {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}, **root}}}
    return Tools([tool]).types("f", "a")


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, ("integer",)),
        ({"type": ["string", "null"]}, ("string", "null")),
        ({"type": "str"}, ("string",)),
        ({"type": "Dict"}, ("object",)),
        ({"type": "any"}, ()),
        ({"enum": ["C", "F"]}, ("string",)),
        ({"enum": [1, None, True, 0.5, [], {}]}, ("integer", "null", "boolean", "number", "array", "object")),
        ({"const": "C"}, ("string",)),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ("string", "null")),
        ({"anyOf": [{"type": "string"}, {}]}, ()),
        ({"oneOf": [{"type": "integer"}, {"enum": ["all"]}]}, ("integer", "string")),
        ({"allOf": [{"$ref": "#/$defs/Place"}, {"description": "a place"}]}, ("object",)),
        ({"$ref": "#/$defs/Place"}, ("object",)),
        ({"$ref": "#/$defs/Loop"}, ()),
        ({"$ref": "#/$defs/Nowhere"}, ()),
        ({"$ref": "https://example.org/schema"}, ()),
        ({}, ()),
        (True, ()),
        (None, ()),
    ],
)
def test_types(schema: Any, types: tuple[str, ...]) -> None:
    definitions = {"Place": {"type": "object"}, "Loop": {"$ref": "#/$defs/Loop"}}
    assert _types(schema, **{"$defs": definitions}) == types


@given(JSON)
def test_any_schema_is_taken(schema: Any) -> None:
    assert all(isinstance(name, str) for name in _types(schema))
    root: dict[str, Any] = {"function": {"name": "f", "parameters": schema}}
    assert all(isinstance(name, str) for name in Tools([root]).types("f", "a"))


def test_tools_come_wrapped_or_bare() -> None:
    tools = Tools([{"type": "function", "function": {"name": "f"}}, {"name": "g", "parameters": {}}, {"type": "web_search"}])
    assert tools.names() == ("f", "g") and len(tools) == 2 and "f" in tools and "h" not in tools
    assert tools.types("f", "a") == tools.types("h", "a") == () and tools.arguments("h") == {}
