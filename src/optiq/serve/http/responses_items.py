"""A reply as items of a response: deltas in, events of a stream out, and the items that those add up to.

    output_item.added, content_part.added, deltas …, done, content_part.done, output_item.done     one item after the other

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from optiq.serve.http.agent import told
from optiq.serve.http.reply import Ran
from optiq.serve.http.responses_body import sealed
from optiq.serve.parse.deltas import CallArguments, CallEnd, CallStart, Content, Delta, Reasoning

Event = dict[str, Any]


@dataclass
class _Open:
    """An item that is being written."""

    kind: str
    item: dict[str, Any]
    text: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class Items:
    """The items of one reply.

    Attributes:
        told: all items; a call that broke is there as incomplete, for its beginning was told.
    """

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self._open: _Open | None = None

    @property
    def output(self) -> list[dict[str, Any]]:
        """The items without calls that broke."""
        return [item for item in self.told if item["type"] != "function_call" or item["status"] == "completed"]

    def add(self, deltas: Iterable[Delta], logprobs: list[dict[str, Any]]) -> list[Event]:
        """The events of some deltas; log probabilities go with the first text among them."""
        events: list[Event] = []
        for delta in deltas:
            match delta:
                case Reasoning(text):
                    events += [*self._begin("reasoning"), self._text("response.reasoning_text.delta", text)]
                case Content(text):
                    events += self._begin("message")
                    events.append({**self._text("response.output_text.delta", text), "logprobs": logprobs})
                    assert self._open is not None
                    self._open.logprobs += logprobs
                    logprobs = []
                case CallStart(_, id, name):
                    events += [*self.finish(), *self._begin("function_call", {"call_id": id, "name": name, "arguments": ""})]
                case CallArguments(_, text):
                    events.append(self._more("response.function_call_arguments.delta", text))
                case CallEnd(_, broken):
                    events += self.finish("incomplete" if broken else "completed")
                    if broken:
                        events += self.add([Content(broken)], [])
        return events

    def ran(self, ran: Ran) -> list[Event]:
        """The events of a program that the server ran."""
        events = self.finish()
        logs = {"type": "logs", "logs": told(ran.outcome)}
        item: dict[str, Any] = {
            "id": f"ci_{secrets.token_hex(12)}",
            "type": "code_interpreter_call",
            "status": "in_progress",
            "code": "",
            "container_id": f"cntr_{secrets.token_hex(12)}",  # every run has a folder of its own
            "outputs": None,
        }
        self.told.append(item)
        at = {"item_id": item["id"], "output_index": len(self.told) - 1}
        events += [self._item("added"), {"type": "response.code_interpreter_call.in_progress", **at}]
        events.append({"type": "response.code_interpreter_call_code.delta", **at, "delta": ran.code})
        events.append({"type": "response.code_interpreter_call_code.done", **at, "code": ran.code})
        events.append({"type": "response.code_interpreter_call.interpreting", **at})
        item |= {"status": "failed" if ran.outcome.stopped else "completed", "code": ran.code, "outputs": [logs]}
        return [*events, {"type": "response.code_interpreter_call.completed", **at}, self._item("done")]

    def finish(self, status: str = "completed") -> list[Event]:
        """The end of the item that is being written."""
        if self._open is None:
            return []
        open_, self._open = self._open, None
        text, item, place = "".join(open_.text), open_.item, len(self.told) - 1
        at = {"item_id": item["id"], "output_index": place}
        item["status"] = status
        if open_.kind == "function_call":
            item["arguments"] = text or "{}"
            done = {"type": "response.function_call_arguments.done", **at, "name": item["name"], "arguments": item["arguments"]}
            return [done, self._item("done")]
        part = _part(open_.kind, text, open_.logprobs)
        item["content"] = [part]
        at["content_index"] = 0
        if open_.kind == "reasoning":
            item["encrypted_content"] = sealed(text)
            done = {"type": "response.reasoning_text.done", **at, "text": text}
        else:
            done = {"type": "response.output_text.done", **at, "text": text, "logprobs": open_.logprobs}
        return [done, {"type": "response.content_part.done", **at, "part": part}, self._item("done")]

    def _begin(self, kind: str, fields: dict[str, Any] | None = None) -> list[Event]:
        if self._open is not None and self._open.kind == kind:
            return []
        events = self.finish()
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        item: dict[str, Any] = {
            "id": f"{prefix}_{secrets.token_hex(12)}",
            "type": kind,
            "status": "in_progress",
            **(fields or {}),
        }
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        self._open = _Open(kind, item)
        self.told.append(item)
        events.append(self._item("added"))
        if kind != "function_call":
            at = {"item_id": item["id"], "output_index": len(self.told) - 1, "content_index": 0}
            events.append({"type": "response.content_part.added", **at, "part": _part(kind, "", [])})
        return events

    def _item(self, what: str) -> Event:
        return {"type": f"response.output_item.{what}", "output_index": len(self.told) - 1, "item": dict(self.told[-1])}

    def _text(self, kind: str, text: str) -> Event:
        return {**self._more(kind, text), "content_index": 0}

    def _more(self, kind: str, text: str) -> Event:
        assert self._open is not None
        self._open.text.append(text)
        return {"type": kind, "item_id": self._open.item["id"], "output_index": len(self.told) - 1, "delta": text}


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
