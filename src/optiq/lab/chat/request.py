"""From a chat to the body of a request: settings as the page has them, files as context, what is sent of earlier turns. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from optiq.errors import InputError
from optiq.lab.chat.store import Message
from optiq.models.families import FAMILIES

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
WHOLE = ("top_k", "max_tokens", "seed")
LONGEST_FILE = 400_000  # characters; a longer one fills any context


@dataclass
class Settings:
    """How a chat is asked; an empty text leaves it to the server.

    Args:
        adapter: a mounted adapter's name.
        thinking: on, off, or empty.
        use: the family guide's settings for one of its uses.
        schema: JSON schema that the reply has to obey, as text.
        tools: ``python`` lets the reply run programs, in the server's sandbox.
    """

    system: str = ""
    adapter: str = ""
    thinking: str = ""
    use: str = ""
    temperature: str = ""
    top_p: str = ""
    top_k: str = ""
    min_p: str = ""
    repetition_penalty: str = ""
    presence_penalty: str = ""
    max_tokens: str = ""
    seed: str = ""
    schema: str = ""
    tools: str = ""

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Settings:
        """As they were kept; names that this version does not know are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: str(value) for name, value in kept.items() if name in known})


def body(settings: Settings, messages: Sequence[Message], family: str | None) -> dict[str, Any]:
    """The request for the next turn.

    Args:
        family: of the served model, whose uses `Settings.use` names.

    Raises:
        InputError: a setting is no number, or the schema no JSON object.
    """
    turns: list[dict[str, Any]] = [{"role": "system", "content": settings.system}] if settings.system.strip() else []
    turns += [_turn(message) for message in messages]
    found: dict[str, Any] = {"messages": turns}
    if settings.use and family and family in FAMILIES:
        found |= FAMILIES[family].uses.get(settings.use, {})
    for name in (*SAMPLING, "max_tokens", "seed"):
        if text := str(getattr(settings, name)).strip():
            found[name] = _number(name, text)
    if settings.adapter:
        found["adapter"] = settings.adapter
    if settings.thinking in ("on", "off"):
        found["enable_thinking"] = settings.thinking == "on"
    if settings.tools:
        found["tools"] = [{"type": settings.tools}]
    if settings.schema.strip():
        schema = {"name": "answer", "schema": _schema(settings.schema), "strict": True}
        found["response_format"] = {"type": "json_schema", "json_schema": schema}
    return found


def _turn(message: Message) -> dict[str, Any]:
    """A turn as the server takes it; files stand before the question."""
    files = message.facts.get("files") or []
    parts = [f"File {file['name']}:\n```\n{file['text']}\n```" for file in files]
    turn: dict[str, Any] = {"role": message.role, "content": "\n\n".join([*parts, message.content])}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    return turn


def _number(name: str, text: str) -> float | int:
    try:
        return int(text) if name in WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in WHOLE else "a number"
        raise InputError(f"{name.replace('_', ' ')} is {text!r}, expected {kind}, or nothing") from None


def _schema(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"the JSON schema is no JSON: {error}; correct it, or empty the field") from None
    if not isinstance(found, dict):
        raise InputError(f"the JSON schema is {type(found).__name__}, expected an object; correct it, or empty the field")
    return found


def footer(facts: Mapping[str, Any]) -> str:
    """What stands under a reply: tokens, speed, how much of the prompt was known, why it ended."""
    if not facts.get("tokens"):
        return str(facts.get("problem") or "")
    parts = [f"{facts['tokens']:,} tokens", f"{facts['tokens_per_s']:.1f} tokens/s", f"first after {facts['first_s']:.2f} s"]
    parts.append(f"{facts['cached_tokens']:,} of {facts['prompt_tokens']:,} prompt tokens from the cache")
    parts += [str(facts["model"])] if facts.get("model") else []
    ends = {"length": "cut at the longest reply", "": "stopped", "tool_calls": "calls a tool"}
    finish = str(facts.get("finish", "stop"))
    return " · ".join(parts + ([ends[finish]] if finish in ends else []))
