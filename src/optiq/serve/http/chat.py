"""/v1/chat/completions: replies to conversations, whole or as a stream.

Source: https://platform.openai.com/docs/api-reference/chat and /chat-streaming
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

from optiq.serve.http import agent, body, reply
from optiq.serve.http.agent import Python
from optiq.serve.http.asking import Asked, Prepared
from optiq.serve.http.chat_body import PYTHON_TYPES, ChatBody
from optiq.serve.http.context import Chosen, Context
from optiq.serve.http.openai_errors import broken
from optiq.serve.http.openai_fields import timings_of, usage_of
from optiq.serve.http.reply import Part, Ran, Whole
from optiq.serve.http.stream import EventStream, frame
from optiq.serve.http.token_text import token_texts
from optiq.serve.parse.deltas import CallArguments, CallEnd, CallStart, Content, Reasoning
from optiq.serve.request import Finish, Token

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Run:
    """One request on its way.

    Args:
        chosen: who answers.
        asked: the body.
        wanted: the same in the terms of all protocols.
        prepared: what the engine is asked.
        head: what every object of the reply begins with.
        python: what it may run; None for nothing.
    """

    chosen: Chosen
    asked: ChatBody
    wanted: Asked
    prepared: Prepared
    head: dict[str, Any]
    python: Python | None = None

    def choices(self) -> AsyncGenerator[tuple[int, Part], None]:
        """Parts of all replies, with the number of each."""
        if self.python is not None:
            return reply.merged([agent.turns(self.chosen, self.wanted, self.python, self.prepared)])
        one_call = self.asked.parallel_tool_calls is False
        gateway, shape = self.chosen.served.gateway, self.prepared.shape
        requests = self.prepared.choices(self.asked.n or 1)
        return reply.merged([reply.parts(gateway, request, shape, one_call=one_call) for request in requests])


async def create(context: Context, request: Request) -> Response:
    """Answer a request."""
    asked = body.checked(ChatBody, await body.read(request))
    if (asked.n or 1) > context.limits.choices:
        raise body.invalid("n", f"is {asked.n}, expected at most {context.limits.choices}")
    wanted = asked.asked()
    python = agent.wanted(context.python, [tool.type for tool in asked.tools or []], PYTHON_TYPES)
    if python is not None and (asked.n or 1) > 1:
        raise body.invalid("n", f"is {asked.n}, expected 1 with a tool that the server runs")
    chosen = await context.models.open(asked.model, asked.adapter)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": chosen.name}
    run = Run(chosen, asked, wanted, await agent.first(chosen, wanted, python), head, python)
    if asked.stream:
        return EventStream(_frames(run), broken, ping_s=context.limits.ping_s)
    return JSONResponse(await _whole(run))


async def _whole(run: Run) -> dict[str, Any]:
    wholes = [Whole() for _ in range(run.asked.n or 1)]
    async with aclosing(run.choices()) as parts:
        async for number, part in parts:
            wholes[number].add(part)
    usages = [whole.usage for whole in wholes]
    return {
        **run.head,
        "object": "chat.completion",
        "choices": [_choice(run, number, whole) for number, whole in enumerate(wholes)],
        "usage": usage_of(usages, sum(whole.reasoning_tokens for whole in wholes)),
        "timings": timings_of(usages),
    }


def _choice(run: Run, number: int, whole: Whole) -> dict[str, Any]:
    message, calls = whole.message, whole.message.calls
    told: dict[str, Any] = {"role": "assistant", "content": message.content or (None if calls else ""), "refusal": None}
    if message.reasoning:
        told["reasoning_content"] = message.reasoning
    if calls:
        told["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls
        ]
    if whole.runs:
        told["tool_runs"] = [_run_told(ran) for ran in whole.runs]
    return {"index": number, "message": told, "finish_reason": _reason(whole), "logprobs": _logprobs(run, whole.tokens)}


def _run_told(ran: Ran) -> dict[str, Any]:
    """A run as replies tell it; no field of OpenAI's."""
    outcome = ran.outcome
    told = {"stdout": outcome.stdout, "stderr": outcome.stderr, "exit_code": outcome.code, "stopped": outcome.stopped}
    return {"id": ran.id, "type": agent.NAME, "code": ran.code, **told, "seconds": round(outcome.seconds, 3), "tier": ran.tier}


def _reason(whole: Whole) -> str:
    if whole.finished is not None and whole.finished.finish is Finish.LENGTH:
        return "length"
    return "tool_calls" if whole.calls else "stop"


def _logprobs(run: Run, tokens: Sequence[Token]) -> dict[str, Any] | None:
    if not run.asked.logprobs:
        return None
    texts = token_texts(run.chosen.served.tokenizer)
    return {"content": [texts.told(token) for token in tokens], "refusal": None}


@dataclass
class _Streamed:
    """What has been told of one reply."""

    whole: Whole = field(default_factory=Whole)
    told: int = 0  # tokens whose log probabilities were told
    begun: bool = False


async def _frames(run: Run) -> AsyncGenerator[bytes, None]:
    states = [_Streamed() for _ in range(run.asked.n or 1)]
    with_usage = run.asked.stream_options is not None and run.asked.stream_options.include_usage
    head = {**run.head, "object": "chat.completion.chunk"}
    extra = {"usage": None} if with_usage else {}
    async with aclosing(run.choices()) as parts:
        async for number, part in parts:
            state = states[number]
            if not state.begun:  # some clients want the role in the first chunk
                state.begun = True
                yield _chunk(head, number, {"role": "assistant", "content": ""}, extra)
            state.whole.add(part)
            told = [_delta(delta) for delta in part.deltas]
            deltas = [delta for delta in told if delta is not None]
            deltas += [] if part.ran is None else [{"tool_runs": [_run_told(part.ran)]}]
            for delta in deltas:
                yield _chunk(head, number, delta, extra, _fresh(run, state))
            if part.finished is not None:
                yield _chunk(head, number, {}, extra, _fresh(run, state), _reason(state.whole))
    if with_usage:
        wholes = [state.whole for state in states]
        usages = [whole.usage for whole in wholes]
        usage = usage_of(usages, sum(whole.reasoning_tokens for whole in wholes))
        yield frame({**head, "choices": [], "usage": usage, "timings": timings_of(usages)})
    yield DONE


def _fresh(run: Run, state: _Streamed) -> dict[str, Any] | None:
    """Log probabilities that have not been told yet; None where there are none."""
    tokens = state.whole.tokens[state.told :]
    state.told += len(tokens)
    return _logprobs(run, tokens) if tokens else None


def _chunk(
    head: dict[str, Any],
    number: int,
    delta: dict[str, Any],
    extra: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    reason: str | None = None,
) -> bytes:
    choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return frame({**head, "choices": [choice], **extra})


def _delta(delta: Any) -> dict[str, Any] | None:
    """A piece of a reply as a stream tells it."""
    match delta:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallStart(index, id, name):
            call = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
            return {"tool_calls": [call]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case CallEnd(_, broken_text) if broken_text:
            return {"content": broken_text}
    return None
