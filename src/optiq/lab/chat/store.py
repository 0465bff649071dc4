"""Chats on disk: a row per chat, a row per message. Every text is made storable on its way in (`text.plain`)."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optiq.errors import InputError
from optiq.lab.chat.cards import cards
from optiq.lab.database import Database
from optiq.lab.text import line, plain

_TABLES = (
    "CREATE TABLE IF NOT EXISTS chats (id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, settings TEXT NOT NULL, "
    "created REAL NOT NULL, changed REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT, chat INTEGER NOT NULL, role TEXT NOT NULL, "
    "content TEXT NOT NULL, reasoning TEXT NOT NULL, facts TEXT NOT NULL, created REAL NOT NULL)",
    "CREATE INDEX IF NOT EXISTS messages_by_chat ON messages (chat, id)",
)
TITLE = 60
NEW = "New chat"


@dataclass(frozen=True)
class Chat:
    """One conversation; ``settings`` are those of `chat.request.Settings`."""

    id: int
    title: str
    settings: Mapping[str, Any]
    changed: float


@dataclass(frozen=True)
class Message:
    """One turn; ``facts``: its files, or what the reply took."""

    id: int
    role: str
    content: str
    reasoning: str
    facts: Mapping[str, Any]


class Chats:
    """All chats of a workbench."""

    def __init__(self, database: Database) -> None:
        self._database = database
        for table in _TABLES:
            database.run(table)

    def add(self, settings: Mapping[str, Any]) -> Chat:
        """A new, empty chat."""
        now = time.time()
        values = (NEW, json.dumps(settings), now, now)
        return self.get(self._database.run("INSERT INTO chats (title, settings, created, changed) VALUES (?, ?, ?, ?)", values))

    def get(self, number: int) -> Chat:
        """One chat.

        Raises:
            InputError: there is none of that number.
        """
        rows = self._database.rows("SELECT * FROM chats WHERE id = ?", (number,))
        if not rows:
            raise InputError(f"there is no chat {number}; it may have been deleted")
        return _chat(rows[0])

    def find(self, wanted: str = "", limit: int = 100) -> list[Chat]:
        """Chats with a text in their title or messages, the newest first."""
        like = "%" + plain(wanted).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        rows = self._database.rows(
            "SELECT * FROM chats WHERE title LIKE ? ESCAPE '\\' OR id IN "
            "(SELECT chat FROM messages WHERE content LIKE ? ESCAPE '\\') ORDER BY changed DESC LIMIT ?",
            (like, like, limit),
        )
        return [_chat(row) for row in rows]

    def messages(self, chat: int) -> list[Message]:
        """The turns of a chat in their order."""
        return [_message(row) for row in self._database.rows("SELECT * FROM messages WHERE chat = ? ORDER BY id", (chat,))]

    def say(self, chat: int, role: str, content: str, reasoning: str = "", facts: Mapping[str, Any] | None = None) -> Message:
        """Add a turn; the first question names the chat."""
        now = time.time()
        values = (chat, role, plain(content), plain(reasoning), json.dumps(facts or {}), now)
        number = self._database.run(
            "INSERT INTO messages (chat, role, content, reasoning, facts, created) VALUES (?, ?, ?, ?, ?, ?)", values
        )
        self._database.run("UPDATE chats SET changed = ? WHERE id = ?", (now, chat))
        if role == "user":
            title = line(content, TITLE) or NEW
            self._database.run("UPDATE chats SET title = ? WHERE id = ? AND title = ?", (title, chat, NEW))
        return _message(self._database.rows("SELECT * FROM messages WHERE id = ?", (number,))[0])

    def cut(self, chat: int, first: int) -> None:
        """Forget a turn and all after it."""
        self._database.run("DELETE FROM messages WHERE chat = ? AND id >= ?", (chat, first))

    def keep(self, chat: int, settings: Mapping[str, Any]) -> None:
        """Remember how a chat is asked."""
        self._database.run("UPDATE chats SET settings = ? WHERE id = ?", (json.dumps(settings), chat))

    def rename(self, chat: int, title: str) -> None:
        """Give it another title."""
        self._database.run("UPDATE chats SET title = ? WHERE id = ?", (line(title, TITLE) or NEW, chat))

    def remove(self, chat: int) -> None:
        """Forget a chat."""
        self._database.run("DELETE FROM messages WHERE chat = ?", (chat,))
        self._database.run("DELETE FROM chats WHERE id = ?", (chat,))

    def as_markdown(self, chat: int) -> str:
        """A chat as a text file; reasoning is quoted, programs and calls of tools stand behind the reply."""
        parts = [f"# {self.get(chat).title}"]
        for message in self.messages(chat):
            parts.append(f"## {message.role}")
            if message.reasoning:
                parts.append("\n".join(f"> {text}" for text in message.reasoning.splitlines()))
            parts += [message.content, *[card.as_markdown() for card in cards(message.facts)]]
        return "\n\n".join(parts) + "\n"

    def as_json(self, chat: int) -> str:
        """A chat with all that is known of it."""
        found = self.get(chat)
        turns = [
            {"role": one.role, "content": one.content, "reasoning": one.reasoning, "facts": one.facts}
            for one in self.messages(chat)
        ]
        told = {"schema": 1, "title": found.title, "settings": found.settings, "messages": turns}
        return json.dumps(told, ensure_ascii=False, indent=2)


def _chat(row: sqlite3.Row) -> Chat:
    return Chat(row["id"], row["title"], json.loads(row["settings"]), row["changed"])


def _message(row: sqlite3.Row) -> Message:
    return Message(row["id"], row["role"], row["content"], row["reasoning"], json.loads(row["facts"]))
