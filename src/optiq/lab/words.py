"""Words of command lines out of what forms hold. Pure."""

from __future__ import annotations


def given(*flags: tuple[str, str]) -> list[str]:
    """Flags with the values that were given; an empty text leaves the command's own default."""
    return [word for flag, value in flags if value.strip() for word in (flag, value.strip())]
