"""What the tools of a request say about their arguments, and text as a value of the type that they ask for.

Formats that write arguments as bare text (Qwen's XML) leave the type to the tool's JSON schema. Takes any schema: what it
does not understand asks for nothing. Knows no format.

Source: JSON Schema, https://json-schema.org/draft/2020-12 (type, enum, const, anyOf, oneOf, allOf, local $ref)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optiq.serve.parse.literal import dumped, scalar, value
from optiq.serve.parse.tape import Tape

DEEPEST_SCHEMA = 8  # references and alternatives within each other that are followed

# Names of Python and other languages stand in many schemas.
_ALIASES = {
    "str": "string", "text": "string", "int": "integer", "long": "integer", "float": "number", "double": "number",
    "bool": "boolean", "list": "array", "tuple": "array", "dict": "object", "none": "null",
}  # fmt: skip
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")


class Tools:
    """The tools of a request by name.

    Args:
        tools: as in the OpenAI API, `{"type": "function", "function": {"name", "parameters"}}`, or the inner object alone.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            function = _mapping(tool.get("function")) or tool
            if isinstance(name := function.get("name"), str):
                self._parameters[name] = _mapping(function.get("parameters"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tools) and self._parameters == other._parameters

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __len__(self) -> int:
        return len(self._parameters)

    def names(self) -> tuple[str, ...]:
        """The tools' names in their order."""
        return tuple(self._parameters)

    def arguments(self, name: str) -> Mapping[str, Any]:
        """The schemas of a tool's arguments by name; empty for an unknown tool."""
        return _mapping(self._parameters.get(name, {}).get("properties"))

    def types(self, name: str, argument: str) -> tuple[str, ...]:
        """The JSON types that an argument may have, in the schema's order; empty where nothing is known."""
        root = self._parameters.get(name, {})
        return tuple(dict.fromkeys(_types(self.arguments(name).get(argument), root, DEEPEST_SCHEMA)))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> list[str]:
    schema = _mapping(schema)
    if depth == 0 or not schema:
        return []
    if isinstance(reference := schema.get("$ref"), str):
        return _types(_resolve(reference, root), root, depth - 1)
    named = schema.get("type")
    names = [str(name).strip().lower() for name in (named if isinstance(named, list) else [named]) if name is not None]
    if names:
        known = [_ALIASES.get(name, name) for name in names]
        return known if all(name in _TYPES for name in known) else []
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return [_type_of(value) for value in values]
    found: list[str] = []
    for word in ("anyOf", "oneOf", "allOf"):
        for inner in schema[word] if isinstance(schema.get(word), list) else ():
            types = _types(inner, root, depth - 1)
            if not types and word != "allOf":
                return []  # one of the alternatives may be anything
            found += types
    return found


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """What a local JSON pointer names; None where it leads nowhere."""
    place: Any = root
    if not reference.startswith("#"):
        return None
    for word in reference[1:].strip("/").split("/"):
        place = _mapping(place).get(word.replace("~1", "/").replace("~0", "~"))
    return place


def _type_of(value: Any) -> str:
    kinds = (("boolean", bool), ("string", str), ("integer", int), ("number", float), ("array", list), ("object", Mapping))
    return next((name for name, kind in kinds if isinstance(value, kind)), "null")


def as_json(text: str, types: Sequence[str]) -> str:
    """A text as the JSON of a value of one of `types`.

    A text that fits none of them is a string: what the model wrote arrives, and whoever runs the tool can say what is wrong.
    Without types an object or an array is read as such, and anything else is a string.

    Args:
        text: as the model wrote it, for instance "5", "True" or "[1, 2]".
        types: JSON types, the preferred first; null counts before all others.
    """
    bare = text.strip()
    order = sorted(types, key=lambda name: name != "null") if types else ("array", "object")
    for name in order:
        found = _as_type(bare, name) if name != "string" else dumped(text)
        if found is not None:
            return found
    return dumped(text)


def _as_type(text: str, name: str) -> str | None:
    """The JSON of a text that is not a string, None if it is not of that type."""
    if name in ("array", "object"):
        return _structure(text) if text.startswith("[" if name == "array" else "{") else None
    if name == "boolean":
        return text.lower() if text.lower() in ("true", "false") else None
    found = scalar(text)
    if name == "null":
        return found if found == "null" else None
    if found is None or found[0] not in "-0123456789":
        return None
    if name == "number":
        return found
    whole, _, rest = found.partition(".")
    return whole if not rest.strip("0") and "e" not in found.lower() else None


def _structure(text: str) -> str | None:
    """The JSON of a text that is one array or object, repaired where that is certain."""
    tape, parts = Tape(), list[str]()
    tape.feed(text)
    tape.close()
    reading = value(tape, parts.append)
    try:
        next(reading)
    except StopIteration as done:
        return "".join(parts) if done.value and tape.at == len(text) else None
    raise AssertionError("a closed tape made its reader wait")
