"""Anthropic's API: messages, whole or as a stream, and the length of prompts.

Source: https://docs.anthropic.com/en/api/messages, /messages-streaming, /messages-count-tokens and /errors
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from optiq.serve.http import agent, body
from optiq.serve.http.agent import Python
from optiq.serve.http.anthropic_blocks import Blocks
from optiq.serve.http.anthropic_body import PYTHON_TYPES, MessagesBody, PromptBody
from optiq.serve.http.asking import Asked, Prepared, prompt_of
from optiq.serve.http.context import Chosen, Context, UnknownModel
from optiq.serve.http.problem import Kind, Problem, Surface, problem_of
from optiq.serve.http.reply import Part
from optiq.serve.http.stream import EventStream, frame
from optiq.serve.request import Finish, Finished, Usage

THEIR_MODELS = "claude"  # coding agents ask for models of the provider; those are what the server serves first
OVERLOADED = 529
PING = frame({"type": "ping"}, "ping")

_TYPES: dict[Kind, str] = {
    Kind.INVALID: "invalid_request_error",
    Kind.CONTEXT: "invalid_request_error",
    Kind.MEMORY: "invalid_request_error",
    Kind.KEY: "authentication_error",
    Kind.FORBIDDEN: "permission_error",
    Kind.UNKNOWN: "not_found_error",
    Kind.METHOD: "invalid_request_error",
    Kind.TIMEOUT: "timeout_error",
    Kind.LARGE: "request_too_large",
    Kind.MEDIA: "invalid_request_error",
    Kind.BUSY: "overloaded_error",
    Kind.DOWN: "api_error",
    Kind.BUG: "api_error",
}


def error(problem: Problem) -> Response:
    """A problem as a response."""
    return JSONResponse(_content(problem), OVERLOADED if problem.kind is Kind.BUSY else problem.status)


def _content(problem: Problem) -> dict[str, Any]:
    # Agents shorten their history when they read these words, and only then should they.
    message = f"prompt is too long: {problem.message}" if problem.kind is Kind.CONTEXT else problem.message
    return {"type": "error", "error": {"type": _TYPES[problem.kind], "message": message}}


def _broken(failure: Exception) -> bytes:
    return frame(_content(problem_of(failure)), "error")


@dataclass(frozen=True)
class Run:
    """One request on its way.

    Args:
        chosen: who answers.
        wanted: what is asked, in the terms of all protocols.
        python: what it may run; None for nothing.
        prepared: what the engine is asked.
        id: of the message.
    """

    chosen: Chosen
    wanted: Asked
    python: Python | None
    prepared: Prepared
    id: str

    def parts(self) -> AsyncGenerator[Part, None]:
        """Of the reply."""
        one_call = not self.wanted.use.parallel
        return agent.parts(self.chosen, self.wanted, self.python, self.prepared, one_call=one_call)

    def message(self, content: list[dict[str, Any]], reason: str | None, stop: str | None, usage: Usage) -> dict[str, Any]:
        """The message."""
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": self.chosen.name, "content": content,
            "stop_reason": reason, "stop_sequence": stop, "usage": _usage(usage),
        }  # fmt: skip


async def create(context: Context, request: Request) -> Response:
    """Answer a request."""
    asked = body.checked(MessagesBody, await body.read(request))
    chosen = await _open(context, asked)
    wanted = replace(
        asked.asked(chosen.served.thinking),
        sampling=asked.sampling(),
        seed=asked.seed,
        max_tokens=asked.max_tokens,
        stops=asked.stops(),
    )
    python = _python(context, asked)
    run = Run(chosen, wanted, python, await agent.first(chosen, wanted, python), f"msg_{secrets.token_hex(12)}")
    if asked.stream:
        limits = context.limits
        return EventStream(_frames(run), _broken, ping=PING, ping_s=limits.ping_s)
    return JSONResponse(await _whole(run))


async def count(context: Context, request: Request) -> Response:
    """How long a prompt is."""
    asked = body.checked(PromptBody, await body.read(request))
    chosen = await _open(context, asked)
    wanted = asked.asked(chosen.served.thinking)
    prompt = await prompt_of(chosen, wanted if _python(context, asked) is None else agent.with_tool(wanted))
    return JSONResponse({"input_tokens": len(prompt.ids)})


def _python(context: Context, asked: PromptBody) -> Python | None:
    return agent.wanted(context.python, [tool.type for tool in asked.tools or []], PYTHON_TYPES)


async def _open(context: Context, asked: PromptBody) -> Chosen:
    try:
        return await context.models.open(asked.model, asked.adapter)
    except UnknownModel:
        if asked.model is None or not asked.model.startswith(THEIR_MODELS):
            raise
        return await context.models.open(None, asked.adapter)


async def _whole(run: Run) -> dict[str, Any]:
    blocks = Blocks()
    async with aclosing(run.parts()) as parts:
        async for part in parts:
            blocks.add(part.deltas)
            if part.ran is not None:
                blocks.ran(part.ran)
            if part.finished is not None:
                blocks.finish()
                return run.message(blocks.content, *_reason(part.finished, blocks), part.finished.usage)
    raise AssertionError("a reply ended without its end")


async def _frames(run: Run) -> AsyncGenerator[bytes, None]:
    blocks, begun = Blocks(), False
    async with aclosing(run.parts()) as parts:
        async for part in parts:
            if not begun:
                begun = True
                cached = 0 if part.progress is None else part.progress.cached
                start = run.message([], None, None, Usage(len(run.prepared.request.prompt), cached))
                yield frame({"type": "message_start", "message": start}, "message_start") + PING
            events = blocks.add(part.deltas) + ([] if part.ran is None else blocks.ran(part.ran))
            if part.finished is not None:
                events += blocks.finish()
                reason, stop = _reason(part.finished, blocks)
                delta = {"stop_reason": reason, "stop_sequence": stop}
                events.append({"type": "message_delta", "delta": delta, "usage": _usage(part.finished.usage)})
                events.append({"type": "message_stop"})
            if events:
                yield b"".join(frame(event, event["type"]) for event in events)


def _reason(finished: Finished, blocks: Blocks) -> tuple[str, str | None]:
    """Why the message ended, and the string that ended it."""
    if finished.finish is Finish.LENGTH:
        return "max_tokens", None
    if isinstance(finished.stopped_by, str):
        return "stop_sequence", finished.stopped_by
    return ("tool_use" if blocks.calls else "end_turn"), None


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.tokens,
    }


Answering = Callable[[Context, Request], Awaitable[Response]]
POSTS: dict[str, Answering] = {"/v1/messages": create, "/v1/messages/count_tokens": count}


def routes(context: Context) -> Sequence[BaseRoute]:
    """All routes of the protocol."""
    return [Route(path, partial(answer, context), methods=["POST"]) for path, answer in POSTS.items()]


SURFACE = Surface("anthropic", ("/v1/messages",), routes, error)
