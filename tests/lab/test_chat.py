"""Chats: what is kept, what is sent, what comes back."""

from __future__ import annotations

import asyncio
import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from optiq.errors import FormatError, InputError, ResourceError
from optiq.lab import client
from optiq.lab.chat.request import Settings, body, footer
from optiq.lab.chat.store import Chats
from optiq.lab.client import Reply
from optiq.lab.database import Database
from optiq.lab.serving import Form, snippets


@pytest.fixture
def chats(tmp_path: Path) -> Chats:
    return Chats(Database(tmp_path / "lab.sqlite"))


def test_chats_are_found_by_what_was_said(chats: Chats) -> None:
    first, second = chats.add({}), chats.add({"system": "Be brief."})
    chats.say(first.id, "user", "How deep is the sea?\nReally.")
    chats.say(second.id, "user", "100% of a_b")
    assert [chat.title for chat in chats.find()] == ["100% of a_b", "How deep is the sea? Really."]
    assert [chat.id for chat in chats.find("DEEP")] == [first.id]
    assert [chat.id for chat in chats.find("0%")] == [second.id] and chats.find("a%b") == [] and chats.find("aXb") == []
    chats.rename(first.id, " Sea ")
    chats.remove(second.id)
    assert [chat.title for chat in chats.find()] == ["Sea"] and chats.messages(second.id) == []
    with pytest.raises(InputError, match="there is no chat"):
        chats.get(second.id)


def test_cutting_takes_a_turn_and_all_after_it(chats: Chats) -> None:
    chat = chats.add({})
    turns = [chats.say(chat.id, role, text) for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    chats.cut(chat.id, turns[1].id)
    assert [message.content for message in chats.messages(chat.id)] == ["a"]


def test_any_text_is_kept_and_exported(chats: Chats) -> None:
    chat = chats.add({})
    chats.say(chat.id, "user", "<script>\ud800\x00", facts={"files": [{"name": "a", "text": "b"}]})
    chats.say(chat.id, "assistant", "yes", reasoning="well\nthen")
    told = chats.as_markdown(chat.id)
    assert told.endswith("## user\n\n<script>\ufffd\u2400\n\n## assistant\n\n> well\n> then\n\nyes\n")
    assert [turn["role"] for turn in json.loads(chats.as_json(chat.id))["messages"]] == ["user", "assistant"]


def test_a_request_has_what_was_chosen_and_nothing_else(chats: Chats) -> None:
    chat = chats.add({})
    chats.say(chat.id, "user", "What is in it?", facts={"files": [{"name": "n.txt", "text": "one"}]})
    assert body(Settings(), chats.messages(chat.id), None) == {
        "messages": [{"role": "user", "content": "File n.txt:\n```\none\n```\n\nWhat is in it?"}]
    }
    chats.say(chat.id, "assistant", "one", reasoning="I see")
    settings = Settings(
        system="Be brief.", use="reasoning", top_k="5", thinking="off", schema='{"type": "object"}', adapter="sql"
    )
    found = body(settings, chats.messages(chat.id), "qwen3.5")
    assert [turn["role"] for turn in found["messages"]] == ["system", "user", "assistant"]
    assert found["messages"][2]["reasoning_content"] == "I see"
    assert (found["temperature"], found["top_p"], found["top_k"]) == (0.6, 0.95, 5)
    assert found["enable_thinking"] is False and found["adapter"] == "sql"
    assert found["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(top_k="5.5"), "top k is '5.5', expected a whole number, or nothing"),
        (Settings(schema="{"), "the JSON schema is no JSON"),
        (Settings(schema="[]"), "the JSON schema is list, expected an object"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: Settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        body(settings, [], None)


def test_settings_of_another_version_are_left_out() -> None:
    assert Settings.of({"system": "x", "later": 1}) == Settings(system="x")


class _Server(BaseHTTPRequestHandler):
    """Answers as a server would, with what its class was given."""

    events: list[Any] = []
    status = 200

    def do_GET(self) -> None:
        text = b'# HELP x\noptiq_tokens_total{model="m"} 8.0\noptiq_requests_now{model="m",state="waiting"} 2\nbroken line here\n'
        self._answer(text, "text/plain")

    def do_POST(self) -> None:
        if self.status != 200:
            self._answer(json.dumps({"error": {"message": "max_tokens is -1,\nexpected more"}}).encode(), "application/json")
            return
        lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in self.events]
        self._answer(b": ping\n\n" + "".join(lines).encode(), "text/event-stream")

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(self.status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def _replies(url: str) -> tuple[list[tuple[str, str]], Reply]:
    reply = Reply()

    async def all_of_it() -> list[tuple[str, str]]:
        return [piece async for piece in client.replies(url, {"messages": []}, reply)]

    return asyncio.run(all_of_it()), reply


def _delta(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"delta": delta, "finish_reason": None}]}


def test_a_stream_becomes_pieces_and_figures(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
    call = {"index": 0, "function": {"name": "run", "arguments": "{}"}}
    events = [
        _delta(role="assistant", content=""), _delta(reasoning_content="hm"), _delta(content="yes"), _delta(tool_calls=[call]),
        {"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}, "[DONE]",
    ]  # fmt: skip
    monkeypatch.setattr(_Server, "events", events)
    pieces, reply = _replies(url)
    assert pieces == [("reasoning", "hm"), ("content", "yes")] and reply.calls == {0: {"name": "run", "arguments": "{}"}}
    assert (reply.prompt_tokens, reply.cached_tokens, reply.tokens, reply.finish) == (9, 3, 4, "stop")
    assert "3 of 9 prompt tokens from the cache" in footer(reply.facts())


@pytest.mark.parametrize("event", ["{", "[]", '{"choices": [{}]}', '{"usage": {"prompt_tokens": 1}, "choices": []}'])
def test_streams_of_another_form_are_named(url: str, monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    monkeypatch.setattr(_Server, "events", [event])
    with pytest.raises(FormatError, match="another form"):
        _replies(url)


def test_errors_carry_the_servers_words(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Server, "events", [{"error": {"message": "the engine ended"}}])
    with pytest.raises(ResourceError, match="the engine ended"):
        _replies(url)
    monkeypatch.setattr(_Server, "status", 400)
    with pytest.raises(InputError, match="max_tokens is -1, expected more"):
        _replies(url)
    with pytest.raises(ResourceError, match="does not answer"):
        asyncio.run(client.get("http://127.0.0.1:1", "/v1/models"))


def test_metrics_are_read_by_name_and_labels(url: str) -> None:
    assert asyncio.run(client.metrics(url)) == {"optiq_tokens_total": {"": 8.0}, "optiq_requests_now": {"waiting": 2.0}}


def test_the_form_becomes_the_command() -> None:
    assert Form(model="m").words() == ["serve", "m", "--port", "8080"]
    form = Form(model="m", port=1, mtp=True, thinking="off", kv="4", memory_gb=" 2 ", adapters=["/a"], adapter_dir="/b")
    flags = ["--mtp", "--no-thinking", "--kv-bits", "4", "--memory-gb", "2", "--adapter", "/a", "--adapter-dir", "/b"]
    assert form.words() == ["serve", "m", "--port", "1", *flags]


def test_snippets_are_programs_whatever_the_models_name() -> None:
    found = snippets("http://127.0.0.1:1", "a\"b'c")
    for name in ("OpenAI's SDK", "Anthropic's SDK"):
        compile(found[name], name, "exec")
    assert json.loads(shlex.split(found["curl"])[-1])["model"] == "a\"b'c"
