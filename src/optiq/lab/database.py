"""The workbench's memory on disk: one SQLite file, opened once by one process.

Each part declares its own tables (`CREATE TABLE IF NOT EXISTS`) when it is made. Knows nothing of what is in them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optiq.errors import FormatError, ResourceError

SCHEMA = 1


class Database:
    """Rows as mappings, one statement per call, each call durable when it returns."""

    def __init__(self, path: Path) -> None:
        """Open, or make, the file.

        Raises:
            FormatError: it is no database, or one of a newer version.
            ResourceError: it cannot be opened.
        """
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            found = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        except sqlite3.OperationalError as error:
            raise ResourceError(f"cannot open {path}: {error}; choose another directory with --data") from None
        except sqlite3.DatabaseError:
            raise FormatError(f"{path} is not a database of this program; move it away, or choose another --data") from None
        if found > SCHEMA:
            raise FormatError(f"{path} has schema {found}, this version knows {SCHEMA}; update optiq, or choose another --data")
        self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def run(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Carry out one statement; the id of the row that an INSERT made."""
        return int(self._connection.execute(statement, values).lastrowid or 0)

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a SELECT finds."""
        return self._connection.execute(statement, values).fetchall()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


class Preferences:
    """Small choices that outlive a visit (the theme, what a form last had), by name."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.run("CREATE TABLE IF NOT EXISTS preferences (name TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def get(self, name: str, default: str = "") -> str:
        """The value of a choice, ``default`` where none was made."""
        rows = self._database.rows("SELECT value FROM preferences WHERE name = ?", (name,))
        return str(rows[0]["value"]) if rows else default

    def set(self, name: str, value: str) -> None:
        """Remember a choice."""
        self._database.run("INSERT OR REPLACE INTO preferences VALUES (?, ?)", (name, value))
