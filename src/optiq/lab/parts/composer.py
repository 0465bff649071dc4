"""Where a question is written: text, files as context, send and stop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nicegui import ui
from nicegui.events import UploadEventArguments

from optiq.lab.chat.request import LONGEST_FILE
from optiq.lab.chat.store import Message
from optiq.lab.parts.elements import box, button, say, words
from optiq.lab.text import line, plain

MOST_BYTES = 4_000_000

Send = Callable[[str, list[dict[str, str]], Message | None], bool]


class Composer:
    """The field at a conversation's end.

    Args:
        send: takes text, files and the question that is edited; whether it took them.
        stop: ends the reply that is being written.
    """

    def __init__(self, send: Send, stop: Callable[[], None]) -> None:
        self._send_it = send
        self._files: list[dict[str, str]] = []
        self._editing: Message | None = None
        with box("composer"):
            self._pending = box("bar")
            self._text = ui.textarea("Message").props("outlined autogrow dense")
            self._text.on("keydown.enter.exact.prevent", self._send)
            self._upload = ui.upload(multiple=True, auto_upload=True, max_file_size=MOST_BYTES, on_upload=self._take)
            self._upload.on_rejected(lambda: say(f"a file of context may have {MOST_BYTES / 1e6:g} MB at most", "warning"))
            self._upload.classes("upload").props('aria-hidden="true"')
            with box("bar"):
                self._go = button("Send", self._send, "main")
                self._halt = button("Stop", stop, "plain")
                button("Add files", lambda: self._upload.run_method("pickFiles"), "quiet", icon="attach_file")
                words("Enter sends, Shift+Enter begins a line", "span", "soft small")
        self.busy(False)

    def busy(self, writing: bool) -> None:
        """Offer stop instead of send while a reply is written."""
        self._go.set_visibility(not writing)
        self._halt.set_visibility(writing)

    def edit(self, message: Message | None) -> None:
        """Take up an earlier question, None to let go of it."""
        self._editing = message
        self._files = [dict(file) for file in (message.facts.get("files") or [])] if message else []
        self._text.set_value(message.content if message else "")
        self._renew()

    def _send(self) -> None:
        text = str(self._text.value or "").strip()
        if text and self._send_it(text, self._files, self._editing):
            self.edit(None)

    async def _take(self, event: UploadEventArguments) -> None:
        content = plain(await event.file.read(), LONGEST_FILE)
        self._files.append({"name": line(event.file.name, 80), "text": content})
        self._upload.reset()
        self._renew()

    def _drop(self, place: int) -> None:
        del self._files[place]
        self._renew()

    def _renew(self) -> None:
        self._pending.clear()
        with self._pending:
            if self._editing is not None:
                words("An earlier question is edited; what came after it will go.", "span", "soft")
                button("Leave it", partial(self.edit, None), "quiet")
            for place, file in enumerate(self._files):
                button(f"{file['name']} ✕", partial(self._drop, place), "quiet", label=f"Remove {file['name']}")
