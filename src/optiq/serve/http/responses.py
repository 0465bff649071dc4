"""/v1/responses: replies as items, whole or as a stream, which later requests can go on from.

Source: https://platform.openai.com/docs/api-reference/responses and /responses-streaming
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from optiq.serve.http import agent, body
from optiq.serve.http.agent import Python
from optiq.serve.http.asking import Asked, Prepared, prompt_of
from optiq.serve.http.context import Chosen, Context
from optiq.serve.http.problem import Kind, Problem, Refusal, problem_of
from optiq.serve.http.reply import Part, Whole
from optiq.serve.http.responses_body import PYTHON_TYPES, Item, ResponseBody, messages_of
from optiq.serve.http.responses_items import Items
from optiq.serve.http.responses_store import Kept, Store
from optiq.serve.http.stream import EventStream, frame
from optiq.serve.http.token_text import token_texts
from optiq.serve.request import Finish, Usage


@dataclass
class Run:
    """One response on its way.

    Args:
        chosen: who answers.
        asked: the body.
        wanted: the same in the terms of all protocols.
        python: what it may run; None for nothing.
        prepared: what the engine is asked.
        messages: the conversation, without instructions.
        store: where it is kept.
    """

    chosen: Chosen
    asked: ResponseBody
    wanted: Asked
    python: Python | None
    prepared: Prepared
    messages: Sequence[dict[str, Any]]
    store: Store
    items: Items = field(default_factory=Items)
    whole: Whole = field(default_factory=Whole)
    told: int = 0  # tokens whose log probabilities were told
    head: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.head = {"id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time())}

    def parts(self) -> AsyncGenerator[Part, None]:
        """Of the reply."""
        one_call = self.asked.parallel_tool_calls is False
        return agent.parts(self.chosen, self.wanted, self.python, self.prepared, one_call=one_call)

    def add(self, part: Part) -> list[dict[str, Any]]:
        """The events of a part of the reply."""
        self.whole.add(part)
        events = self.items.add(part.deltas, self._logprobs())
        events += [] if part.ran is None else self.items.ran(part.ran)
        return events + (self.items.finish(self.status) if part.finished is not None else [])

    @property
    def status(self) -> str:
        """Of the response, as far as it is."""
        finished = self.whole.finished
        if finished is None:
            return "in_progress"
        return "incomplete" if finished.finish is Finish.LENGTH else "completed"

    def response(self, streamed: bool, problem: Problem | None = None) -> dict[str, Any]:
        """The response, as far as it is."""
        asked, request = self.asked, self.prepared.request
        status = "failed" if problem is not None else self.status
        return {
            **self.head,
            "status": status,
            "error": None if problem is None else {"code": "server_error", "message": problem.message},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.chosen.name,
            "output": self.items.told if streamed else self.items.output,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": None, "summary": None} if asked.reasoning is None else _dumped(asked.reasoning),
            "store": asked.store is not False,
            "temperature": request.sampling.temperature,
            "text": {"format": {"type": "text"}} if asked.text is None else _dumped(asked.text),
            "tool_choice": asked.tool_choice if isinstance(asked.tool_choice, str) else _dumped(asked.tool_choice) or "auto",
            "tools": [_dumped(tool) for tool in asked.tools or []],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": request.sampling.top_p,
            "truncation": "disabled",
            "background": False,
            "usage": _usage(self.whole.usage, self.whole.reasoning_tokens) if self.whole.finished is not None else None,
            "user": asked.user,
        }

    def keep(self) -> None:
        """Keep the response, where that is wanted."""
        if self.asked.store is not False:
            items = [_dumped(item) | {"id": item.id or f"msg_{secrets.token_hex(12)}"} for item in self.asked.items]
            output = [Item.model_validate(item) for item in self.items.output]
            said = [*self.messages, *messages_of(output, self.store.item)]
            self.store.add(Kept(self.response(streamed=False), items, said))

    def _logprobs(self) -> list[dict[str, Any]]:
        if not self.asked.wants_logprobs:
            return []
        tokens = self.whole.tokens[self.told :]
        self.told += len(tokens)
        texts = token_texts(self.chosen.served.tokenizer)
        return [texts.told(token) for token in tokens]


class Responses:
    """The routes of one server, with what it keeps.

    Args:
        context: the server's.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = Store(context.limits.store_bytes)

    async def create(self, request: Request) -> Response:
        """Answer a request."""
        asked = body.checked(ResponseBody, await body.read(request))
        messages = self._messages(asked)
        chosen = await self._context.models.open(asked.model, asked.adapter)
        wanted, python = self._wanted(asked, messages)
        run = Run(chosen, asked, wanted, python, await agent.first(chosen, wanted, python), messages, self._store)
        limits = self._context.limits
        if asked.stream:
            stream = _Stream(run)
            return EventStream(stream.frames(), stream.broken, ping_s=limits.ping_s)
        return JSONResponse(await _whole(run))

    async def count(self, request: Request) -> Response:
        """How long a prompt is."""
        asked = body.checked(ResponseBody, await body.read(request))
        chosen = await self._context.models.open(asked.model, asked.adapter)
        wanted, python = self._wanted(asked, self._messages(asked))
        prompt = await prompt_of(chosen, wanted if python is None else agent.with_tool(wanted))
        return JSONResponse({"object": "response.input_tokens", "input_tokens": len(prompt.ids)})

    async def retrieve(self, request: Request) -> Response:
        """A response that was kept."""
        return JSONResponse(self._kept(request).response)

    async def delete(self, request: Request) -> Response:
        """Forget a response."""
        id = self._kept(request).response["id"]
        self._store.delete(id)
        return JSONResponse({"id": id, "object": "response.deleted", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        """What a response was the answer to."""
        items = list(self._kept(request).items)
        ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
        return JSONResponse({"object": "list", "data": items, "has_more": False, **ends})

    async def cancel(self, request: Request) -> Response:
        """Responses are never made in the background, so there is nothing to cancel."""
        self._kept(request)
        raise body.invalid("", "only a response in the background can be cancelled, and there are none here")

    def _wanted(self, asked: ResponseBody, messages: Sequence[dict[str, Any]]) -> tuple[Asked, Python | None]:
        """A request in the terms of all protocols, and what it may run."""
        return asked.asked(messages), agent.wanted(self._context.python, [tool.type for tool in asked.tools or []], PYTHON_TYPES)

    def _messages(self, asked: ResponseBody) -> list[dict[str, Any]]:
        """The conversation: what came before, and the input."""
        before: Sequence[Any] = ()
        if asked.previous_response_id is not None:
            kept = self._store.get(asked.previous_response_id)
            if kept is None:
                name = asked.previous_response_id[:80]
                raise body.invalid(
                    "previous_response_id", f"is {name!r}, and no response of that id is kept; send the whole input"
                )
            before = kept.messages
        messages = [*before, *messages_of(asked.items, self._store.item)]
        if not messages:
            raise body.invalid("input", "is empty, expected a text or at least one item")
        return messages

    def _kept(self, request: Request) -> Kept:
        id = request.path_params["id"]
        kept = self._store.get(id)
        if kept is None:
            raise Refusal(Problem(Kind.UNKNOWN, f"there is no response {id[:80]!r}; it was not kept, or not for so long"))
        return kept


async def _whole(run: Run) -> dict[str, Any]:
    async with aclosing(run.parts()) as parts:
        async for part in parts:
            run.add(part)
    run.keep()
    return run.response(streamed=False)


class _Stream:
    """The events of one response, numbered."""

    def __init__(self, run: Run) -> None:
        self._run, self._number = run, 0

    async def frames(self) -> AsyncGenerator[bytes, None]:
        run, begun = self._run, False
        async with aclosing(run.parts()) as parts:
            async for part in parts:
                if not begun:
                    begun = True
                    yield self._state("response.created") + self._state("response.in_progress")
                events = run.add(part)
                if events:
                    yield b"".join(self._frame(event) for event in events)
        run.keep()
        yield self._state(f"response.{run.status}")

    def broken(self, error: Exception) -> bytes:
        """The last event of a stream that an exception ends."""
        return self._state("response.failed", problem_of(error))

    def _state(self, kind: str, problem: Problem | None = None) -> bytes:
        return self._frame({"type": kind, "response": self._run.response(streamed=True, problem=problem)})

    def _frame(self, event: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        return frame({**event, "sequence_number": number}, event["type"])


def _usage(usage: Usage, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.tokens,
    }


def _dumped(value: Any) -> dict[str, Any]:
    """Fields as the client sent them."""
    return {} if value is None else dict(value.model_dump(by_alias=True, exclude_unset=True))
