"""The screen Chat: conversations with the model that is served, streamed, kept, searched, exported."""

from __future__ import annotations

import asyncio

from nicegui import background_tasks, ui

from optiq.errors import InputError, OptiqError
from optiq.lab import client
from optiq.lab.chat.request import Settings, body
from optiq.lab.chat.store import Chat, Chats, Message
from optiq.lab.client import Reply, Served
from optiq.lab.pages.frame import opened
from optiq.lab.parts.chatlist import ChatList
from optiq.lab.parts.chatsettings import ChatSettings
from optiq.lab.parts.composer import Composer
from optiq.lab.parts.elements import box, button, link_button, paragraph, say, section, words
from optiq.lab.parts.jobview import JobView
from optiq.lab.parts.picker import ModelPicker
from optiq.lab.parts.transcript import Transcript
from optiq.lab.serving import Form
from optiq.lab.text import line
from optiq.lab.tuning import adapter_folders
from optiq.lab.workbench import Workbench

ABOUT = "Talk to the model that is served on this machine."
FLUSH_S = 0.05  # what is written is drawn twenty times a second
POLL_S = 0.7


def register(bench: Workbench) -> None:
    """Put the screen at its address."""
    chats = Chats(bench.database)

    @ui.page("/chat")
    async def chat(id: int = 0) -> None:
        screen = await opened(bench, "Chat", ABOUT, lambda: _Screen(bench, chats), wide=True)
        screen.start(id)


class _Screen:
    """One visit: the chat that is open, and the reply that is being written."""

    def __init__(self, bench: Workbench, chats: Chats) -> None:
        self.bench, self.chats = bench, chats
        self.chat: Chat | None = None
        self.up: Served | None = None
        self.known: tuple[object, ...] = ("nothing yet",)
        self.writing: asyncio.Task[None] | None = None
        with box("chat"):
            self.list = ChatList(chats, self.open, self.removed)
            with box("talk"):
                self.server = box("stack")
                self.settings = ChatSettings(self._keep)
                self.transcript = Transcript(self._act)
                self.composer = Composer(self.send, self.stop)

    def start(self, number: int) -> None:
        """Open a chat, the newest one without a number."""
        try:
            chat = self.chats.get(number) if number else next(iter(self.chats.find(limit=1)), None)
        except InputError as error:
            say(error, "warning")
            chat = None
        self.open(chat)
        ui.timer(POLL_S, self._watch_server)

    def open(self, chat: Chat | None) -> None:
        """Show a chat; None for a new one, which is made with its first question."""
        if self.writing is not None:
            self.stop()
        self.chat = chat
        self.settings.put(Settings.of(chat.settings) if chat else Settings())
        self.transcript.show(self.chats.messages(chat.id) if chat else [])
        self.composer.edit(None)
        self.list.renew(chat.id if chat else 0)

    def removed(self, chat: Chat) -> None:
        """A chat is gone from the list."""
        if self.chat is not None and self.chat.id == chat.id:
            self.open(None)

    async def _watch_server(self) -> None:
        up, coming = client.served(self.bench.queue), client.starting(self.bench.queue)
        known = (up, coming, adapter_folders(self.bench.place))
        if known == self.known:
            return
        self.known, self.up = known, up
        self.server.clear()
        with self.server:
            if up is not None:
                with box("bar"):
                    words(f"{line(up.model)} at {up.url}", "span", "soft")
                    link_button("Server", "/server")
                await self.settings.offer(up)
            elif coming is not None:
                JobView(self.bench.queue, coming)
            else:
                self._start_server()

    def _start_server(self) -> None:
        with section("No model is served"):
            paragraph("Choose one to talk to; the screen Server has all its flags.")
            form = Form(port=0, adapter_dir=str(self.bench.place.folder("adapters")))
            picker = ModelPicker(self.bench.library, "Model")

            def begin() -> None:
                form.model = picker.value
                if not form.model:
                    say("choose a model first", "warning")
                    return
                try:
                    self.bench.queue.add(f"Serve {line(form.model, 60)}", form.words(), {"model": form.model})
                except OptiqError as error:
                    say(error, "negative")

            button("Serve it", begin, "main")

    def _keep(self, settings: Settings) -> None:
        if self.chat is not None:
            self.chats.keep(self.chat.id, vars(settings))

    def _act(self, what: str, number: int) -> None:
        """Edit a question, or write a reply again."""
        if self.chat is None:
            return
        if self.writing is not None:
            say("a reply is being written; wait for its end, or stop it", "warning")
        elif what == "edit":
            self.composer.edit(next((one for one in self.chats.messages(self.chat.id) if one.id == number), None))
        elif what == "again":
            self.chats.cut(self.chat.id, number)
            self.transcript.cut(number)
            self._write()

    def send(self, text: str, files: list[dict[str, str]], editing: Message | None) -> bool:
        """Ask; whether it was taken."""
        if self.writing is not None:
            return False
        if self.up is None:
            say("no model is served; choose one above", "warning")
            return False
        if self.chat is None:
            self.chat = self.chats.add(vars(self.settings.now))
        if editing is not None:
            self.chats.cut(self.chat.id, editing.id)
            self.transcript.cut(editing.id)
        self.transcript.add(self.chats.say(self.chat.id, "user", text, facts={"files": files} if files else {}))
        self.list.renew(self.chat.id)
        self._write()
        return True

    def stop(self) -> None:
        """End the reply that is being written; what there is of it stays."""
        if self.writing is not None:
            self.writing.cancel()

    def _write(self) -> None:
        if self.chat is None or self.up is None:
            return
        try:
            asked = body(self.settings.now, self.chats.messages(self.chat.id), self.settings.family)
        except InputError as error:
            say(error, "negative")
            return
        self.transcript.begin()
        self.composer.busy(True)
        self.writing = background_tasks.create(self._stream(self.chat, self.up, asked))

    async def _stream(self, chat: Chat, up: Served, asked: dict[str, object]) -> None:
        """Draw the reply as it comes, and keep it however it ends."""
        reply, told = Reply(), {"content": "", "reasoning": ""}
        fresh = {"content": "", "reasoning": ""}
        problem, drawn = "", 0

        def flush() -> None:
            nonlocal drawn
            for run in reply.runs[drawn:]:
                self.transcript.run(run)
            drawn = len(reply.runs)
            if any(fresh.values()):
                self.transcript.append(fresh["content"], fresh["reasoning"])
                for kind in fresh:
                    told[kind] += fresh[kind]
                    fresh[kind] = ""

        with self.transcript:
            timer = ui.timer(FLUSH_S, flush)
        try:
            if "adapter" in asked:
                await client.mount(up.url, str(asked["adapter"]))
            async for kind, text in client.replies(up.url, asked, reply):
                fresh[kind] += text
        except OptiqError as error:
            problem = str(error)
        finally:
            timer.cancel()
            flush()
            self._finish(chat, up, reply, told, problem)

    def _finish(self, chat: Chat, up: Served, reply: Reply, told: dict[str, str], problem: str) -> None:
        """Keep what was written; where that is nothing, take the empty reply away. Another chat may be open by now."""
        self.writing = None
        self.composer.busy(False)
        if problem:
            with self.transcript:
                say(problem, "negative")
        if not (any(told.values()) or reply.calls or reply.runs):
            self.transcript.drop()
            return
        name = f"{up.model}:{self.settings.now.adapter}" if self.settings.now.adapter else up.model
        facts = {**reply.facts(), "model": name, "calls": list(reply.calls.values()), "runs": reply.runs, "problem": problem}
        message = self.chats.say(chat.id, "assistant", told["content"], told["reasoning"], facts)
        if self.chat is not None and self.chat.id == chat.id:
            self.transcript.end(message)
