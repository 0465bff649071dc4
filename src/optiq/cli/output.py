"""How a command shows its result: text or JSON on stdout, never mixed with progress."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from optiq.events import Events


def show(args: argparse.Namespace, events: Events, data: Mapping[str, Any], text: str) -> None:
    """Print the result: ``data`` as JSON with ``--json``, ``text`` otherwise; JSON-line readers get it as an event."""
    events.result(data)
    print(printable(json.dumps(data, indent=2, ensure_ascii=False, default=str) if args.json else text))


def printable(text: str) -> str:
    """A text, or JSON, as UTF-8 can carry it: bytes of file names that are not UTF-8 become escapes (``\\udcff``)."""
    return text.encode("utf-8", "backslashreplace").decode()


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns of text under their headers, two spaces apart; the columns ``right`` are flush right."""
    lines = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell.rjust(widths[column]) if column in right else cell.ljust(widths[column]) for column, cell in enumerate(line)
        ).rstrip()
        for line in lines
    )


def confirmed(question: str, yes: bool) -> bool | None:
    """Whether the user agrees: ``--yes``, or an answer on a terminal; None where nobody can be asked."""
    if yes:
        return True
    if not sys.stdin.isatty():
        return None
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
