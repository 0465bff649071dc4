"""Grammars of replies that call tools: what a model was trained to write, with arguments that the tools' schemas allow.

Calls are those of the formats in `serve.parse.tools`; the grammar is in llguidance's Lark dialect. Words that are single tokens
of the tokenizer stand as token ids. Knows no protocol, no MLX.

    required    calls
    strict      text, then perhaps calls
    answer      calls, or JSON of a schema of its own
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llguidance import LLMatcher

from optiq.errors import InputError
from optiq.registry import Table
from optiq.serve.grammar_spec import GrammarSpec, json_options
from optiq.serve.parse.tools import mistral, pythonic, qwen_xml
from optiq.serve.parse.tools.schema import Tools
from optiq.serve.schema import check_keywords, with_real_times

Schema = Mapping[str, Any]
Spell = Callable[[str], str]  # a word as the grammar writes it: a token's id, or its text in quotes
ANYTHING: Schema = {"type": "object"}


@dataclass(frozen=True)
class Tool:
    """A tool of a request.

    Args:
        name: as calls name it.
        parameters: schema of its arguments.
        strict: the schema must be met by every call; where it is not, only the calls that a grammar forces meet what can be met.
    """

    name: str
    parameters: Schema = field(default_factory=lambda: ANYTHING)
    strict: bool = False


def grammar(
    format: str, tools: Sequence[Tool], tokenizer: Any, *, required: bool, parallel: bool, answer: GrammarSpec | None = None
) -> GrammarSpec:
    """The grammar of a reply.

    Args:
        format: of calls, a name in `serve.parse.tools.FORMATS`.
        tools: those that may be called, at least one.
        tokenizer: as `optiq.models.load.load` gives it.
        required: the reply is at least one call; otherwise it may be text.
        parallel: more than one call may come.
        answer: what else the reply may be where no call is required: a `json_schema` or `json_object`.

    Raises:
        InputError: a strict tool's schema cannot be enforced, with the keyword.
    """
    spell = _spelling(tokenizer)
    calls, rules = FORMS[format](tools, spell, parallel)
    if required:
        start = calls
    elif answer is not None:
        schema = json.loads(answer.text) if answer.kind == "json_schema" else ANYTHING
        check_keywords(schema)
        start = f"{calls} | answer"
        rules = [*rules, f"answer: {_json(schema)}"]
    else:
        start = f"TEXT | TEXT {calls}"
        rules = [*rules, "TEXT: /(.|\\n)*/"]
    return GrammarSpec("lark", "\n".join([f"start: {start}", *rules]) + "\n")


def _spelling(tokenizer: Any) -> Spell:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    added = {} if backend is None else {token.content: id for id, token in backend.get_added_tokens_decoder().items()}

    def spell(word: str) -> str:
        return f"<[{added[word]}]>" if word in added else json.dumps(word)

    return spell


def _schema(tool: Tool) -> Schema:
    """What a grammar can hold of a tool's schema; all of it, where the tool is strict."""
    try:
        check_keywords(tool.parameters)
        _check(tool.parameters)
        if tool.parameters.get("type", "object") != "object":
            raise InputError(f"type is {tool.parameters['type']!r}, expected 'object'")
    except InputError as error:
        if tool.strict:
            raise InputError(f"tool {tool.name!r}: {error}") from None
        return ANYTHING
    return {**tool.parameters, "type": "object"}


def _check(schema: Schema) -> None:
    bad, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(f"start: {_json(schema)}"), None)
    if bad or messages:
        raise InputError(messages[0].splitlines()[0])


def _json(schema: Schema) -> str:
    return f"%json {json.dumps({**with_real_times(schema), 'x-guidance': json_options()}, ensure_ascii=False)}"


def _hermes(tools: Sequence[Tool], spell: Spell, parallel: bool) -> tuple[str, list[str]]:
    open_, close = spell("<tool_call>"), spell("</tool_call>")
    rules = [
        f"call{n}: {json.dumps(_head(tool))} arguments{n} {json.dumps('}')}\narguments{n}: {_json(_schema(tool))}"
        for n, tool in enumerate(tools)
    ]
    rules.append(f'call: {open_} "\\n" ({_any(tools)}) "\\n" {close}')
    return "call" + (' ("\\n" call)*' if parallel else ""), rules


def _head(tool: Tool) -> str:
    return f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '


def _mistral(tools: Sequence[Tool], spell: Spell, parallel: bool) -> tuple[str, list[str]]:
    rules = [
        f"call{n}: {json.dumps(_head(tool))} arguments{n} {json.dumps('}')}\narguments{n}: {_json(_schema(tool))}"
        for n, tool in enumerate(tools)
    ]
    more = f' (", " ({_any(tools)}))*' if parallel else ""
    return f'{spell(mistral.OPEN)} "[" ({_any(tools)}){more} "]"', rules


def _pythonic(tools: Sequence[Tool], spell: Spell, parallel: bool) -> tuple[str, list[str]]:
    rules: list[str] = []
    for n, tool in enumerate(tools):
        given = []
        for place, (key, schema, needed) in enumerate(_arguments(tool)):
            rules.append(f"value{n}_{place}: {_json(schema)}")
            given.append((f"{json.dumps(key + '=')} value{n}_{place}", needed))
        rules.append(f'call{n}: {json.dumps(tool.name + "(")} {_listed(given)} ")"')
    more = f' (", " ({_any(tools)}))*' if parallel else ""
    opener, closer = spell(pythonic.OPENERS[1]), spell(pythonic.CLOSERS[1])
    calls = f'"[" ({_any(tools)}){more} "]"'
    return (f"{opener} {calls} {closer}" if opener.startswith("<") else calls), rules


def _listed(given: Sequence[tuple[str, bool]]) -> str:
    """Arguments with commas between those that come; needed ones stand first."""
    needed = ' ", " '.join(text for text, must in given if must)
    left = [text for text, must in given if not must]
    if needed:
        return needed + "".join(f' (", " {text})?' for text in left)
    tails = [left[n] + "".join(f' (", " {text})?' for text in left[n + 1 :]) for n in range(len(left))]
    return f"({' | '.join(tails)})?" if tails else ""


def _qwen_xml(tools: Sequence[Tool], spell: Spell, parallel: bool) -> tuple[str, list[str]]:
    rules: list[str] = []
    known = Tools([{"name": tool.name, "parameters": _schema(tool)} for tool in tools])
    for n, tool in enumerate(tools):
        parameters = []
        for place, (key, schema, needed) in enumerate(_arguments(tool)):
            name = f"value{n}_{place}"
            rules.append(_bare(name, schema, known.types(tool.name, key), f"{tool.name}.{key}" if tool.strict else ""))
            head = json.dumps(f"{qwen_xml.PARAMETER}{key}>\n", ensure_ascii=False)
            parameters.append(f"{head} {name}" if needed else f"({head} {name})?")
        head, end = json.dumps(f"{qwen_xml.FUNCTION}{tool.name}>\n", ensure_ascii=False), json.dumps(qwen_xml.END_FUNCTION + "\n")
        rules.append(f"call{n}: {head} {' '.join(parameters)} {end}")
    rules.append(f'call: {spell(qwen_xml.OPEN)} "\\n" ({_any(tools)}) {spell(qwen_xml.CLOSE)}')
    return "call" + (' ("\\n" call)*' if parallel else ""), rules


# What a bare text says of itself beyond being one; none of it can be enforced up to a closing tag.
_TEXT_KEYWORDS = ("pattern", "format", "minLength", "maxLength")
_CLOSE = "\n" + qwen_xml.END_PARAMETER + "\n"


def _bare(name: str, schema: Schema, types: Sequence[str], strict: str) -> str:
    """The rule of a value that stands between tags as it is, with the tag that closes it.

    Args:
        name: of the rule.
        schema: of the value.
        types: that the value may have; none where nothing is known.
        strict: the argument of which all of the schema must be met; "" for none.
    """
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
        listed = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices if choice)
        return f"{name}: ({listed}) {json.dumps(_CLOSE)}"
    if not types or "string" in types:
        unmet = [word for word in _TEXT_KEYWORDS if word in schema]
        if strict and unmet:
            raise InputError(f"tool argument {strict}: {unmet[0]!r} cannot be enforced in this model's calls; take it out")
        return f"{name}[suffix={json.dumps(_CLOSE)}]: /(.|\\n)*/"
    return f"{name}: {name}_json {json.dumps(_CLOSE)}\n{name}_json: {_json(schema)}"


def _arguments(tool: Tool) -> list[tuple[str, Schema, bool]]:
    """Name, schema and whether it is needed, of each argument; needed ones first."""
    schema = _schema(tool)
    properties = schema.get("properties", {})
    needed = [key for key in schema.get("required", []) if key in properties]
    shared = {word: schema[word] for word in ("$defs", "definitions") if word in schema}
    order = [*needed, *(key for key in properties if key not in needed)]
    return [(key, {**_object(properties[key]), **shared}, key in needed) for key in order]


def _object(schema: Any) -> Schema:
    return schema if isinstance(schema, Mapping) else {}


def _any(tools: Sequence[Tool]) -> str:
    return " | ".join(f"call{n}" for n in range(len(tools)))


# Format -> what makes the calls, and the rules that they are made of.
FORMS: Table[Callable[[Sequence[Tool], Spell, bool], tuple[str, list[str]]]] = Table("format of tool calls")
FORMS.add("qwen-xml", _qwen_xml)
FORMS.add("hermes", _hermes)
FORMS.add("mistral", _mistral)
FORMS.add("pythonic", _pythonic)
