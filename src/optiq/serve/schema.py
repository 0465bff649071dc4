"""Which JSON Schema keywords a grammar enforces; everything else is refused, for a schema is a promise to its reader.

JSON Schema lets a reader ignore what it does not know; the grammar compiler does so with unknown words and refuses some known
ones. Here a schema may hold the keywords that are enforced, those that only annotate, and extensions named `x-…`. Values
(`enum`, `const`, `default`, `examples`) are not looked into. Data in: a schema. Data out: nothing, or one clear line.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from optiq.errors import InputError

# Source: JSON Schema 2020-12, core and validation; what the compiler does with each is tested in tests/serve/test_grammar.py.
ENFORCED = frozenset(
    "$ref type enum const anyOf allOf oneOf properties required additionalProperties patternProperties minProperties "
    "maxProperties items prefixItems additionalItems minItems maxItems minLength maxLength pattern format minimum maximum "
    "exclusiveMinimum exclusiveMaximum multipleOf".split()
)
ANNOTATIONS = frozenset(
    "$schema $id id $anchor $comment $defs definitions title description default examples readOnly writeOnly deprecated "
    "discriminator contentEncoding contentMediaType contentSchema".split()
)
# Formats of which the compiler also writes what no calendar or clock has (29 February of any year, a 61st second at any time).
# Source: RFC 3339, 5.6 and 5.7
_DATE = "[1-9][0-9]{3}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_CLOCK})"
PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
NAMED = ("properties", "patternProperties", "$defs", "definitions")  # name -> schema
LISTED = ("anyOf", "allOf", "oneOf", "prefixItems", "items")  # schemas in order
SINGLE = ("items", "additionalItems", "additionalProperties")


def check_keywords(schema: Any) -> None:
    """Refuse a schema with a keyword that the grammar would not enforce.

    Args:
        schema: as JSON gives it.

    Raises:
        InputError: names the keyword and its place.
    """
    for place, part in _parts("$", schema):
        for keyword in part:
            extension = keyword.startswith("x-") and keyword != "x-guidance"  # that one is the compiler's options
            if keyword not in ENFORCED and keyword not in ANNOTATIONS and not extension:
                raise InputError(f"JSON schema: {keyword!r} at {place} is not supported; take it out or express it otherwise")


def with_real_times(schema: Any) -> Any:
    """The same schema, with formats of dates and times as patterns that every reader of such texts takes."""
    schema = copy.deepcopy(schema)
    for _, part in _parts("$", schema):
        pattern = PATTERNS.get(part["format"]) if isinstance(part.get("format"), str) else None
        if pattern is not None and "pattern" not in part:
            del part["format"]
            part["pattern"] = pattern
    return schema


def _parts(place: str, schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within a schema, with its path; what is no object is left to the compiler."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for keyword in NAMED:
        inner = schema.get(keyword)
        for name, part in inner.items() if isinstance(inner, dict) else ():
            yield from _parts(f"{place}.{keyword}.{name}", part)
    for keyword in LISTED:
        inner = schema.get(keyword)
        for index, part in enumerate(inner if isinstance(inner, list) else ()):
            yield from _parts(f"{place}.{keyword}[{index}]", part)
    for keyword in SINGLE:
        yield from _parts(f"{place}.{keyword}", schema.get(keyword))
