"""Training records: lines of JSON, each checked, with the place where it stands.

    {"text"}    {"prompt", "completion"}    {"messages"[, "tools"]}    {"prompt", "chosen", "rejected"}

Data in: a file, or a directory with train.jsonl and perhaps valid.jsonl. Data out: `Record`s. Knows no tokens.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optiq.errors import InputError
from optiq.files import user_path

KINDS = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "chat": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
}
TRAIN, VALID = "train.jsonl", "valid.jsonl"


@dataclass(frozen=True)
class Record:
    """One line.

    Args:
        place: file and line number.
        kind: a key of `KINDS`.
        fields: what the line holds.
    """

    place: str
    kind: str
    fields: dict[str, Any]


def find(data: str | os.PathLike[str]) -> tuple[Path, Path | None]:
    """The files to train and to validate on; None where there is nothing to validate on.

    Args:
        data: a file, or a directory.

    Raises:
        InputError: no such file.
    """
    place = user_path(data)
    if place.is_file():
        return place, None
    if not (place / TRAIN).is_file():
        raise InputError(f"{place} is no file and holds no {TRAIN}; give JSON lines, or a directory with {TRAIN} and {VALID}")
    return place / TRAIN, place / VALID if (place / VALID).is_file() else None


def read(file: Path) -> list[Record]:
    """Every record of a file; empty lines are skipped.

    Raises:
        InputError: the first bad line, by its number; a file without records; preferences among other records.
    """
    found = []
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found.append(_record(f"{file.name}:{number}", line))
                    _check_kind(found[-1], found[0])
    except UnicodeDecodeError as error:
        raise InputError(f"{file}:{len(found) + 1}: not UTF-8 ({error.reason}); write it as UTF-8") from None
    if not found:
        raise InputError(f"{file} holds no records; expected one JSON object per line")
    return found


def _record(place: str, line: str) -> Record:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error.msg} at column {error.colno}); expected one object per line") from None
    if "\\ud" in line.lower():  # UTF-8 holds no half pairs, so an escape is the one way for them
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError(f"{place}: half of a surrogate pair, which is no text; write the character itself") from None
    if not isinstance(fields, dict):
        raise InputError(f"{place}: {type(fields).__name__}, expected an object")
    kind = next((kind for kind, keys in KINDS.items() if all(key in fields for key in keys)), None)
    if kind is None:
        told = "; ".join(", ".join(keys) for keys in KINDS.values())
        raise InputError(f"{place}: keys {', '.join(fields) or 'none'}; expected one of: {told}")
    for key in KINDS[kind]:
        _check(place, key, fields[key])
    if not isinstance(fields.get("tools") or [], list):
        raise InputError(f"{place}: tools is {type(fields['tools']).__name__}, expected a list")
    return Record(place, kind, fields)


def _check_kind(record: Record, first: Record) -> None:
    """Preferences are for another method than all else."""
    if (record.kind == "preference") != (first.kind == "preference"):
        raise InputError(f"{record.place}: a record of kind {record.kind} after {first.kind}; keep preferences in their own file")


def _check(place: str, key: str, value: Any) -> None:
    """A text, or a list of messages where those are allowed."""
    if isinstance(value, str) and key != "messages":
        return
    if key in ("text", "completion") or not isinstance(value, list) or not value:
        expected = "a list of messages" if key == "messages" else "a text"
        raise InputError(f"{place}: {key} is {type(value).__name__}, expected {expected}")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"{place}: {key} holds {json.dumps(message)[:60]}, expected objects with a role")
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise InputError(f"{place}: content of {message['role']} is {type(message['content']).__name__}, expected a text")
