"""Lines of "name  value" for terminals; tables are in `optiq.cli.output`."""

from __future__ import annotations

from collections.abc import Iterable


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """One line per pair, values below each other."""
    pairs = list(rows)
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)
