"""The packaged text: three disjoint sets over six domains, and the reader for a user's own samples.

``calibration`` feeds the statistics, ``dev`` every choice, ``score`` the reported numbers. Sources and licences are in
``SOURCES.md`` beside the files, hashes in ``manifest.json``; ``scripts/build_text.py`` writes all of them. Knows
nothing of tokenizers or models. Data in: JSON lines ``{"domain", "text"}`` or ``{"domain", "messages"[, "tools"]}``.
Out: `Sample`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from optiq.errors import InputError

DOMAINS = ("prose", "reasoning", "code", "agent", "tool_call", "instructions")
SETS = ("calibration", "dev", "score")
ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]

__all__ = ["DOMAINS", "ROLES", "SETS", "Message", "Sample", "read_samples", "samples"]


@dataclass(frozen=True)
class Sample:
    """One document: plain ``text``, or a chat in ``messages`` with the ``tools`` that it offers; never both."""

    id: str
    domain: str
    messages: tuple[Message, ...] | None
    text: str | None
    tools: tuple[dict[str, Any], ...] | None
    source: str
    licence: str


def samples(set_name: str) -> list[Sample]:
    """The samples of one packaged set, in file order.

    Args:
        set_name: ``calibration`` (40 per domain), ``dev`` (12) or ``score`` (20).

    Raises:
        InputError: there is no such set.
    """
    if set_name not in SETS:
        raise InputError(f"text set '{set_name}' does not exist; the sets are {', '.join(SETS)}")
    return list(_packaged(f"{set_name}.jsonl"))


@cache
def _packaged(name: str) -> tuple[Sample, ...]:
    return tuple(_parse(resources.files(__name__).joinpath(name).read_text(encoding="utf-8"), name))


def read_samples(path: str | Path) -> list[Sample]:
    """The samples of a user's JSON-lines file.

    A line is ``{"domain", "text"}``, ``{"domain", "messages"[, "tools"]}`` or ``{"text"}`` (domain ``custom``); ``id``,
    ``source`` and ``licence`` are optional, other keys are ignored, empty lines are skipped.

    Raises:
        InputError: the file cannot be read or is empty, or a line has another shape (its number is in the message).
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error.strerror})"
        raise InputError(f"calibration file {path} {reason}; give a JSON-lines file") from error
    found = _parse(content, str(path))
    if not found:
        raise InputError(f'calibration file {path} holds no samples; write one {{"domain", "text"}} object per line')
    return found


def _parse(content: str, name: str) -> list[Sample]:
    # Not str.splitlines: it also splits at U+2028 and the like, which JSON allows inside a string.
    lines = enumerate(content.split("\n"), 1)
    return [_sample(line, f"{name}, line {number}", f"{Path(name).stem}/{number}") for number, line in lines if line.strip()]


def _sample(line: str, where: str, name: str) -> Sample:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from error
    except RecursionError:
        raise InputError(f"{where}: not valid JSON (nested too deeply)") from None
    except UnicodeEncodeError:
        raise InputError(f"{where}: half of a surrogate pair, which is no text; write the character itself") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}; expected an object with 'text' or 'messages'")
    text, messages, tools = row.get("text"), row.get("messages"), row.get("tools")
    if (text is None) == (messages is None):
        found = "both 'text' and" if text is not None else "neither 'text' nor"
        raise InputError(f"{where}: {found} 'messages'; give exactly one of them")
    if text is not None and not (isinstance(text, str) and text.strip()):
        raise InputError(f"{where}: 'text' is empty or not a string")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InputError(f"{where}: 'tools' must be a list of objects")
    domain = row.get("domain", "custom")
    if not isinstance(domain, str) or not domain:
        raise InputError(f"{where}: 'domain' is {domain!r}; expected a name such as {', '.join(DOMAINS)}")
    return Sample(
        id=str(row.get("id", name)),
        domain=domain,
        messages=None if messages is None else _messages(messages, where),
        text=text,
        tools=tuple(tools) if tools else None,
        source=str(row.get("source", "")),
        licence=str(row.get("licence", "")),
    )


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: 'messages' must be a list with at least one message")
    for index, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise InputError(f"{where}: message {index} has role {role!r}; expected one of {', '.join(ROLES)}")
        if not isinstance(message.get("content") or "", str):
            raise InputError(f"{where}: message {index} has a 'content' that is not a string")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise InputError(f"{where}: message {index} has 'tool_calls' that are not a list of objects")
    if not any(message["role"] == "user" for message in value):
        raise InputError(f"{where}: 'messages' has no user message, which chat templates need")
    return tuple(dict(message) | {"content": message.get("content") or ""} for message in value)
