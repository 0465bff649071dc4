"""The list of chats: search, open, new, export, rename, delete."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nicegui import ui

from optiq.lab.chat.store import Chat, Chats
from optiq.lab.parts.elements import box, button, heading, paragraph, words
from optiq.lab.place import slug
from optiq.lab.text import line


class ChatList:
    """All chats, or those with a text in them.

    Args:
        opened: called with the chat to open, None for a new one.
        removed: called with a chat that was deleted.
    """

    def __init__(self, chats: Chats, opened: Callable[[Chat | None], None], removed: Callable[[Chat], None]) -> None:
        self._chats, self._opened, self._removed = chats, opened, removed
        self._wanted, self._current = "", 0
        with ui.element("aside").classes("chats stack").props('aria-label="Chats"'):
            button("New chat", lambda: opened(None), "plain", icon="add")
            field = ui.input("Search the chats", on_change=lambda event: self._search(str(event.value or "")))
            field.props("outlined dense clearable")
            self._list = box("list")
            self._tools = box("bar")

    def renew(self, current: int) -> None:
        """Draw the list, with this chat as the open one."""
        self._current = current
        self._list.clear()
        found = self._chats.find(self._wanted)
        with self._list:
            for chat in found:
                entry = words(line(chat.title, 60), "button", "chat-entry").props('type="button"')
                if chat.id == current:
                    entry.props["aria-current"] = "true"
                entry.on("click", partial(self._opened, chat))
            if not found:
                paragraph("No chat has that text." if self._wanted else "No chats yet.", "soft")
        self._tools.clear()
        if current:
            with self._tools:
                self._actions(self._chats.get(current))

    def _search(self, text: str) -> None:
        self._wanted = text
        self.renew(self._current)

    def _actions(self, chat: Chat) -> None:
        name = slug(chat.title)
        button(
            "Markdown", lambda: ui.download.content(self._chats.as_markdown(chat.id), f"{name}.md"), "quiet", "Export as Markdown"
        )
        button("JSON", lambda: ui.download.content(self._chats.as_json(chat.id), f"{name}.json"), "quiet", "Export as JSON")
        button("Rename", partial(self._rename, chat), "quiet", "Rename this chat")
        button("Delete", partial(self._delete, chat), "danger", "Delete this chat")

    def _rename(self, chat: Chat) -> None:
        def keep() -> None:
            self._chats.rename(chat.id, str(field.value or ""))
            dialog.close()
            self.renew(self._current)

        with ui.dialog() as dialog, box("dialog stack"):
            heading("Rename the chat")
            field = ui.input("Title", value=chat.title).props("outlined dense autofocus")
            with box("bar"):
                button("Keep the old one", dialog.close, "plain")
                button("Rename", keep, "main")
        dialog.open()

    def _delete(self, chat: Chat) -> None:
        def forget() -> None:
            dialog.close()
            self._chats.remove(chat.id)
            self._removed(chat)

        with ui.dialog() as dialog, box("dialog stack"):
            heading("Delete the chat?")
            paragraph(f"“{line(chat.title, 80)}” will be gone.")
            with box("bar"):
                button("Keep it", dialog.close, "plain")
                button("Delete", forget, "danger", "Really delete this chat")
        dialog.open()
