"""Named tables: the one way in which a feature is added (one new file and one line in a table).

A table knows its own noun, so an unknown name yields one clear line that lists the known ones. Tests, help
texts and docs walk tables. Imports only the errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Generic, TypeVar

from optiq.errors import InputError

T = TypeVar("T")


class Table(Generic[T]):
    """An ordered mapping from names to values with a noun for its messages.

    Args:
        noun: what one entry is, in the singular, for instance ``"encoder"``.
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, T] = {}

    def add(self, name: str, value: T) -> T:
        """Enter ``value`` under ``name`` and return it.

        Raises:
            ValueError: the name is taken; two entries of one name are a bug in the program.
        """
        if name in self._entries:
            raise ValueError(f"{self.noun} {name!r} is registered twice")
        self._entries[name] = value
        return value

    def names(self) -> tuple[str, ...]:
        """All names in the order of entry."""
        return tuple(self._entries)

    def items(self) -> tuple[tuple[str, T], ...]:
        """All pairs (name, value) in the order of entry."""
        return tuple(self._entries.items())

    def __getitem__(self, name: str) -> T:
        """The value under ``name``.

        Raises:
            InputError: no such name; the message lists the known names and the nearest one.
        """
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(name, self._entries, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(self._entries) or "none"
        raise InputError(f"unknown {self.noun} {name!r}; known: {known}.{hint}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
