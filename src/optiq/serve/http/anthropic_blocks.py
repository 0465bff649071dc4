"""A reply as Anthropic's content blocks: deltas in, events of a stream out, and what those add up to.

    content_block_start, content_block_delta …, content_block_stop        for each block in turn, never two open at a time

Source: https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from optiq.sandbox import Outcome
from optiq.serve.http.anthropic_body import PYTHON_NAME
from optiq.serve.http.reply import Ran
from optiq.serve.parse.deltas import CallArguments, CallEnd, CallStart, Content, Delta, Reasoning

Event = dict[str, Any]
KILLED = 137  # the exit status of a program that was killed: 128 and SIGKILL


class Blocks:
    """The blocks of one reply.

    Attributes:
        content: those so far, as a whole message has them.
        calls: how many of them are whole calls.
    """

    def __init__(self) -> None:
        self.content: list[dict[str, Any]] = []
        self.calls = 0
        self._told = -1  # index of the last block that was begun; those of broken calls are not in `content`
        self._open = ""
        self._text: list[str] = []  # of the open block

    def add(self, deltas: Iterable[Delta]) -> list[Event]:
        """The events of some deltas."""
        return [event for delta in deltas for event in self._add(delta)]

    def ran(self, ran: Ran) -> list[Event]:
        """The events of a program that the server ran: its call, and what became of it."""
        id_ = "srvtoolu_" + ran.id.removeprefix("call_")
        events = self._begin("server_tool_use", {"id": id_, "name": PYTHON_NAME, "input": {}}, anew=True)
        events.append(self._more("input_json_delta", "partial_json", json.dumps({"code": ran.code})))
        events += self._begin("code_execution_tool_result", {"tool_use_id": id_, "content": _result(ran.outcome)}, anew=True)
        return events + self._close()

    def finish(self) -> list[Event]:
        """The end of the last block."""
        return self._close()

    def _add(self, delta: Delta) -> list[Event]:
        match delta:
            case Reasoning(text):
                begun = self._begin("thinking", {"thinking": "", "signature": ""})
                return [*begun, self._more("thinking_delta", "thinking", text)]
            case Content(text):
                return [*self._begin("text", {"text": ""}), self._more("text_delta", "text", text)]
            case CallStart(_, id, name):
                return self._begin("tool_use", {"id": _id(id), "name": name, "input": {}}, anew=True)
            case CallArguments(_, text):
                return [self._more("input_json_delta", "partial_json", text)]
            case CallEnd(_, broken):
                return self._end_call(broken)

    def _begin(self, kind: str, fields: dict[str, Any], anew: bool = False) -> list[Event]:
        if self._open == kind and not anew:
            return []
        closed = self._close()
        self._told += 1
        self._open, self._text = kind, []
        block = {"type": kind, **fields}
        self.content.append(dict(block))
        return [*closed, {"type": "content_block_start", "index": self._told, "content_block": block}]

    def _more(self, kind: str, field: str, text: str) -> Event:
        self._text.append(text)
        return {"type": "content_block_delta", "index": self._told, "delta": {"type": kind, field: text}}

    def _end_call(self, broken: str) -> list[Event]:
        if not broken:
            self.calls += 1
            return self._close()
        del self.content[-1]  # what was told of it must not run; its source is text
        stop = {"type": "content_block_stop", "index": self._told}
        self._open = ""
        return [stop, *self._add(Content(broken))]

    def _close(self) -> list[Event]:
        if not self._open:
            return []
        kind, text = self._open, "".join(self._text)
        self._open = ""
        events: list[Event] = []
        if kind == "thinking":
            signature = _signature(text)
            self.content[-1] |= {"thinking": text, "signature": signature}
            delta = {"type": "signature_delta", "signature": signature}
            events.append({"type": "content_block_delta", "index": self._told, "delta": delta})
        elif kind == "text":
            self.content[-1]["text"] = text
        elif kind != "code_execution_tool_result":
            self.content[-1]["input"] = json.loads(text or "{}")
        return [*events, {"type": "content_block_stop", "index": self._told}]


def _result(outcome: Outcome) -> dict[str, Any]:
    """What became of a program; the limit that stopped it stands where its errors do."""
    stderr = f"{outcome.stderr}\n[stopped: {outcome.stopped}]".lstrip() if outcome.stopped else outcome.stderr
    code = KILLED if outcome.code is None else outcome.code
    return {"type": "code_execution_result", "stdout": outcome.stdout, "stderr": stderr, "return_code": code, "content": []}


def _id(id: str) -> str:
    """An id of a call as the API's look; the model's own, so that templates which want it get it back."""
    return "toolu_" + id.removeprefix("call_") if id.startswith("call_") else id


def _signature(text: str) -> str:
    """What clients send back with the reasoning; the server does not look at it, some clients drop reasoning without one."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8", "replace")).digest()).decode()
