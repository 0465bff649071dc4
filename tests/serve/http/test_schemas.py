"""Any schema is met or refused by its keyword: replies of a model with random weights at temperature 1.5, over HTTP.

Such a model has no idea of JSON, so whatever is right about its replies was enforced.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import mlx.core as mx
import pytest
from mlx.utils import tree_map

from optiq.models.load import load
from optiq.serve.engine import Engine, EngineOptions
from serve_locally import TINY, app_of, listening, tiny_served

REFUSED = {
    "uniqueItems": True, "contains": {"type": "integer"}, "not": {"type": "null"}, "propertyNames": {"maxLength": 3},
    "if": {"type": "string"}, "dependentRequired": {"a": ["b"]}, "unevaluatedProperties": False, "minContains": 1,
}  # fmt: skip
WORDS = ("alpha", "b2", "ümlaut", "two words", 'q"uote', "x")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")
PATTERNS = ("^[a-c]{1,4}$", "^\\d{3}-[A-Z]$", "^(yes|no)$")
MAX_TOKENS = 500
VALIDATOR = jsonschema.Draft202012Validator


def random_engine() -> Engine:
    """The embedded model's shape with random weights."""
    model, tokenizer = load(TINY)
    mx.random.seed(7)
    model.update(tree_map(lambda x: mx.random.normal(x.shape, x.dtype, scale=0.05) if x.ndim > 1 else x, model.parameters()))
    return Engine(model, tokenizer, EngineOptions(context=4096, memory_bytes=1 << 30))


@pytest.fixture(scope="module")
def url(tokenizer: Any) -> Iterator[str]:
    served = tiny_served(random_engine, tokenizer)
    with listening(app_of(served)) as found:
        yield found
    served.gateway.close()


def schema_of(choose: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema whose replies have an end that chance finds."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"]
    kinds += ["object", "array", "anyOf", "prefixItems", "ref"] * (2 if depth else 0)
    return _MAKERS[choose.choice(kinds)](choose, depth - 1)


def _object(choose: random.Random, depth: int) -> dict[str, Any]:
    names = choose.sample(WORDS, choose.randint(0, 4))
    needed = [name for name in names if choose.random() < 0.6]
    properties = {name: schema_of(choose, depth) for name in names}
    found = {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
    return found | ({"description": "An object."} if choose.random() < 0.3 else {})


def _array(choose: random.Random, depth: int) -> dict[str, Any]:
    low = choose.randint(0, 2)
    return {"type": "array", "items": schema_of(choose, depth), "minItems": low, "maxItems": low + choose.randint(0, 2)}


def _integer(choose: random.Random, depth: int) -> dict[str, Any]:
    low = choose.randint(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + choose.randint(0, 500)}


def _number(choose: random.Random, depth: int) -> dict[str, Any]:
    low = round(choose.uniform(-10, 10), 2)
    return {"type": "number", "exclusiveMinimum": low, "maximum": low + choose.choice([0.5, 3, 100])}


def _string(choose: random.Random, depth: int) -> dict[str, Any]:
    low = choose.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + choose.randint(0, 6)}


def _any(choose: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [schema_of(choose, depth) for _ in range(choose.randint(1, 3))]}


def _ref(choose: random.Random, depth: int) -> dict[str, Any]:
    inner = {"type": "object", "properties": {"v": schema_of(choose, 0)}, "required": ["v"], "additionalProperties": False}
    return {"x-inner": inner, "$ref": "#/$defs/inner"}  # `whole` gives it a place


_MAKERS: dict[str, Any] = {
    "object": _object, "array": _array, "integer": _integer, "number": _number, "string": _string, "anyOf": _any, "ref": _ref,
    "boolean": lambda choose, depth: {"type": "boolean"},
    "null": lambda choose, depth: {"type": ["null", "boolean"]},
    "enum": lambda choose, depth: {"enum": choose.sample([*WORDS, 5, -1.5, None, True], 3)},
    "const": lambda choose, depth: {"const": choose.choice([*WORDS, 7, False])},
    "pattern": lambda choose, depth: {"type": "string", "pattern": choose.choice(PATTERNS)},
    "format": lambda choose, depth: {"type": "string", "format": choose.choice(FORMATS)},
    "prefixItems": lambda choose, depth: {
        "type": "array", "prefixItems": [schema_of(choose, depth) for _ in range(2)], "items": False, "minItems": 2,
    },
}  # fmt: skip


def whole(number: int) -> tuple[dict[str, Any], str | None]:
    """A schema by its number, and the keyword for which it has to be refused."""
    choose = random.Random(number)
    schema = {"type": "object", "properties": {"reply": schema_of(choose)}, "required": ["reply"], "additionalProperties": False}
    definitions: dict[str, Any] = {}
    _define(schema, definitions)
    schema |= {"$defs": definitions} if definitions else {}
    if number % 10:
        return schema, None
    keyword = choose.choice(sorted(REFUSED))
    schema["properties"]["odd"] = {keyword: REFUSED[keyword]}
    return schema, keyword


def _define(part: Any, definitions: dict[str, Any]) -> None:
    """Move what references mean to where they point."""
    if isinstance(part, dict):
        if "x-inner" in part:
            name = f"inner{len(definitions)}"
            definitions[name] = part.pop("x-inner")
            part["$ref"] = f"#/$defs/{name}"
        for inner in list(part.values()):
            _define(inner, definitions)
    elif isinstance(part, list):
        for inner in part:
            _define(inner, definitions)


def ask(url: str, number: int) -> str:
    """What became of a schema: whole, cut, refused."""
    schema, keyword = whole(number)
    body = {
        "messages": [{"role": "user", "content": "x"}], "temperature": 1.5, "top_p": 1.0, "top_k": 0, "seed": number,
        "max_tokens": MAX_TOKENS, "enable_thinking": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    }  # fmt: skip
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300, trust_env=False)
    if answer.status_code == 400:
        message = answer.json()["error"]["message"]
        words = {keyword} if keyword else {word for word in _words(schema) if word in message}
        assert any(word in message for word in words), (message, schema)
        return "refused"
    assert answer.status_code == 200 and keyword is None, (answer.text, schema)
    (choice,) = answer.json()["choices"]
    if choice["finish_reason"] == "length":
        return "cut"
    reply = json.loads(choice["message"]["content"])
    VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).validate(reply)
    return "whole"


def _words(part: Any) -> set[str]:
    """All keys of a schema."""
    if isinstance(part, list):
        return set().union(*map(_words, part))
    return set(part) | set().union(*map(_words, part.values())) if isinstance(part, dict) else set()


def fates(url: str, numbers: range) -> dict[str, int]:
    """How many schemas had which fate."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: ask(url, number), numbers))
    return {fate: found.count(fate) for fate in ("whole", "cut", "refused")}


def test_some_schemas_are_met_or_refused(url: str) -> None:
    found = fates(url, range(12))
    assert found["refused"] >= 2 and found["whole"] >= 6, found


@pytest.mark.slow
def test_300_schemas_are_met_or_refused(url: str) -> None:
    found = fates(url, range(300))
    print(found)
    assert found["refused"] >= 30 and found["whole"] >= 180, found
