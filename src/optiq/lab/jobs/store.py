"""The queue on disk: one row per job. Knows nothing of processes."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiq.errors import InputError
from optiq.lab.database import Database
from optiq.lab.jobs.job import Job, State
from optiq.lab.text import line, plain

_TABLE = """CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, words TEXT NOT NULL, cwd TEXT NOT NULL, facts TEXT NOT NULL,
    state TEXT NOT NULL, pid INTEGER, born TEXT NOT NULL DEFAULT '', problem TEXT NOT NULL DEFAULT '', place INTEGER NOT NULL,
    created REAL NOT NULL, started REAL, ended REAL)"""


class Store:
    """Jobs by id; every change is on disk when a method returns."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        database.run(_TABLE)

    def add(self, title: str, words: Sequence[str], cwd: str, facts: Mapping[str, Any]) -> Job:
        """A new job at the queue's end.

        Raises:
            InputError: a word that no command line can carry.
        """
        for word in words:
            if "\0" in word or plain(word) != word:
                raise InputError(
                    f"{line(word)!r} has characters that a command line cannot carry; rename it, or write another text"
                )
        values = (line(title), json.dumps(list(words)), cwd, json.dumps(facts), State.QUEUED, time.time())
        number = self._database.run(
            "INSERT INTO jobs (title, words, cwd, facts, state, created, place) "
            "VALUES (?, ?, ?, ?, ?, ?, (SELECT COALESCE(MAX(place), 0) + 1 FROM jobs))",
            values,
        )
        job = self.get(number)
        job.folder.mkdir(parents=True, exist_ok=True)
        return job

    def get(self, number: int) -> Job:
        """One job.

        Raises:
            InputError: there is none of that number.
        """
        rows = self._database.rows("SELECT * FROM jobs WHERE id = ?", (number,))
        if not rows:
            raise InputError(f"there is no job {number}; the page Jobs lists them")
        return self._job(rows[0])

    def all(self) -> list[Job]:
        """Every job, the newest first."""
        return [self._job(row) for row in self._database.rows("SELECT * FROM jobs ORDER BY id DESC")]

    def among(self, states: Sequence[State]) -> list[Job]:
        """Jobs in these states, in the queue's order."""
        marks = ", ".join("?" * len(states))
        return [
            self._job(row) for row in self._database.rows(f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY place", states)
        ]

    def begun(self, number: int, pid: int, born: str) -> None:
        """It runs, as this process."""
        self._database.run(
            "UPDATE jobs SET state = ?, pid = ?, born = ?, problem = '', started = ?, ended = NULL WHERE id = ?",
            (State.RUNNING, pid, born, time.time(), number),
        )

    def ended(self, number: int, state: State, problem: str = "") -> None:
        """Its process is gone."""
        self._database.run(
            "UPDATE jobs SET state = ?, problem = ?, pid = NULL, born = '', ended = ? WHERE id = ?",
            (state, plain(problem, 2000), time.time(), number),
        )

    def put(self, number: int, state: State) -> None:
        """It is paused, or runs on."""
        self._database.run("UPDATE jobs SET state = ? WHERE id = ?", (state, number))

    def queue_again(self, number: int) -> None:
        """It waits once more, behind the others."""
        self._database.run(
            "UPDATE jobs SET state = ?, problem = '', ended = NULL, place = (SELECT MAX(place) + 1 FROM jobs) WHERE id = ?",
            (State.QUEUED, number),
        )

    def remove(self, number: int) -> None:
        """Forget it."""
        self._database.run("DELETE FROM jobs WHERE id = ?", (number,))

    def _job(self, row: sqlite3.Row) -> Job:
        return Job(
            id=row["id"],
            title=row["title"],
            words=tuple(json.loads(row["words"])),
            folder=self._folder / str(row["id"]),
            cwd=row["cwd"],
            facts=json.loads(row["facts"]),
            state=State(row["state"]),
            pid=row["pid"],
            born=row["born"],
            problem=row["problem"],
            created=row["created"],
            started=row["started"],
            ended=row["ended"],
        )
