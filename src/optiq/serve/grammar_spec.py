"""Grammars as requests name them, and what llguidance is given for each.

Knows no tokenizer. In: a kind and a text. Out: a grammar in llguidance's Lark dialect (`KINDS`), or why there is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from optiq.errors import InputError
from optiq.registry import Table
from optiq.serve.schema import check_keywords, with_real_times

MOST_SPACE = 64  # characters of white space between two JSON tokens: enough to indent, and a loop of line breaks ends


@dataclass(frozen=True)
class GrammarSpec:
    """A grammar as a request names it.

    Args:
        kind: one of `KINDS`.
        text: a JSON schema, a regular expression (of the whole reply), a JSON list of strings, a grammar in llguidance's Lark
            dialect, or "" for `json_object`.
    """

    kind: str
    text: str = ""

    @classmethod
    def json_schema(cls, schema: dict[str, Any]) -> GrammarSpec:
        """JSON that a schema describes."""
        return cls("json_schema", json.dumps(schema, ensure_ascii=False))

    @classmethod
    def choice(cls, choices: Sequence[str]) -> GrammarSpec:
        """One of some texts."""
        return cls("choice", json.dumps(list(choices), ensure_ascii=False))


def _json_schema(text: str) -> str:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise InputError(f"json_schema: not valid JSON ({error})") from None
    if not isinstance(schema, dict):
        raise InputError(f"json_schema: a JSON {type(schema).__name__}, expected an object")
    check_keywords(schema)
    return _from_schema(schema)


def _json_object(text: str) -> str:
    return _from_schema({"type": "object"})


def _from_schema(schema: dict[str, Any]) -> str:
    return "start: %json " + json.dumps(with_real_times(schema) | {"x-guidance": json_options()})


def json_options() -> Any:
    """How JSON is written within any grammar: whatever the schema says counts, white space is bounded."""
    return {"lenient": False, "whitespace_pattern": rf"[ \t\r\n]{{0,{MOST_SPACE}}}"}


def _choice(text: str) -> str:
    choices = json.loads(text)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise InputError(f"choice: {text}, expected a list of texts, none of them empty")
    return _regex("|".join(map(re.escape, choices)))


def _regex(text: str) -> str:
    return str(json.loads(LLMatcher.grammar_from_regex(text))["grammars"][0]["lark_grammar"])


# Kind -> what makes a grammar in llguidance's Lark dialect of the text.
KINDS: Table[Callable[[str], str]] = Table("kind of grammar")
KINDS.add("json_schema", _json_schema)
KINDS.add("json_object", _json_object)
KINDS.add("regex", _regex)
KINDS.add("choice", _choice)
KINDS.add("lark", LLMatcher.grammar_from_lark)
