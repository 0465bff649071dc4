"""Python for agents: a reply that may run programs, in turns, within the server's limits.

    model writes a call -> the program runs apart (`optiq.sandbox`) -> the model reads what it printed -> …

A request opts in by a tool of a type that its protocol has for this; who started the server decides whether there is one and what
a program may take, and nothing that a request or a model says widens that. Each run begins anew: an empty folder, no network,
nothing of the one before. Knows no protocol.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from optiq.errors import InputError
from optiq.sandbox import Outcome, Policy, Runner
from optiq.serve.http import reply
from optiq.serve.http.asking import Asked, Prepared, ToolUse, prepared
from optiq.serve.http.body import invalid
from optiq.serve.http.context import Chosen
from optiq.serve.http.reply import Part, Ran, Whole
from optiq.serve.parse.deltas import Call, CallArguments, CallEnd, CallStart, Content
from optiq.serve.request import Finish, Usage

NAME = "python"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Runs a Python program and tells what it prints. Every run starts anew in an empty folder, offline.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "the program; print what you want to know"}},
            "required": ["code"],
            "additionalProperties": False,
        },
    },
}
MOST_CHARACTERS = 8000  # of what a program printed that the model reads


@dataclass
class Python:
    """What requests may do with Python.

    Args:
        runner: runs programs.
        policy: of each run.
        turns: of one request in which it may run programs; then it has to answer.
        seconds: of all runs of a request together.
        at_once: programs of all requests that run at the same time.
    """

    runner: Runner
    policy: Policy = field(default_factory=lambda: Policy(seconds=30, cpu_seconds=30, output_bytes=64 << 10))
    turns: int = 8
    seconds: float = 120.0
    at_once: int = 2

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.at_once)

    async def run(self, call: Call, left_s: float) -> Ran:
        """One call, which may be no call at all; its wait for others' programs counts. Cancelling this ends the program."""
        deadline = time.monotonic() + left_s
        code, wrong = _code(call)
        if wrong:
            return Ran(call.id, code, _refused(wrong), self.runner.name)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + left_s):
                await self._free.acquire()
        except TimeoutError:
            return Ran(call.id, code, _refused("the time for programs is over; answer without"), self.runner.name)
        try:
            seconds = min(self.policy.seconds, deadline - time.monotonic())
            return Ran(call.id, code, await self._apart(code, seconds), self.runner.name)
        finally:
            self._free.release()

    async def _apart(self, code: str, seconds: float) -> Outcome:
        """Run a program on a thread; where this is cancelled, it ends before this does."""
        if seconds <= 0:
            return _refused("the time for programs is over; answer without")
        cancelled = threading.Event()
        policy = replace(self.policy, seconds=seconds)
        running = asyncio.ensure_future(asyncio.to_thread(self.runner.run, code, policy, cancelled=cancelled))
        try:
            return await asyncio.shield(running)
        except OSError as error:
            return _refused(f"the program could not be started: {error.strerror}")
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.wait({running})
            raise


def wanted(python: Python | None, types: Sequence[str | None], known: Collection[str]) -> Python | None:
    """What runs programs for a request; None where it asks for none.

    Args:
        python: what the server has.
        types: of the request's tools.
        known: those of them that ask for Python in the request's protocol.

    Raises:
        Refusal: the server has none, or the client's own tools stand beside it.
    """
    asking = [n for n, type_ in enumerate(types) if type_ in known]
    if not asking:
        return None
    if python is None:
        raise invalid("tools", "asks for Python, which this server does not run; start it with --tools python")
    if len(asking) < len(types):
        raise invalid(
            f"tools.{asking[0]}", "is run by the server, which the client's own tools cannot stand beside; leave one kind out"
        )
    return python


def with_tool(asked: Asked) -> Asked:
    """The same conversation with a model that knows of Python."""
    return replace(asked, tools=[TOOL])


async def first(chosen: Chosen, asked: Asked, python: Python | None) -> Prepared:
    """The first turn's request. Raises as `prepared`, and InputError for a model that can call no tools where Python is there."""
    if python is None:
        return await prepared(chosen, asked)
    found = await prepared(chosen, with_tool(asked))
    if found.shape.format is None:
        raise InputError("tools: this model's chat template knows no calls of tools; leave the python tool out")
    return found


def parts(
    chosen: Chosen, asked: Asked, python: Python | None, begun: Prepared, *, one_call: bool = False
) -> AsyncGenerator[Part, None]:
    """The reply, with or without Python; as `turns`, and as `reply.parts`."""
    if python is not None:
        return turns(chosen, asked, python, begun)
    return reply.parts(chosen.served.gateway, begun.request, begun.shape, one_call=one_call)


async def turns(chosen: Chosen, asked: Asked, python: Python, begun: Prepared) -> AsyncGenerator[Part, None]:
    """The reply with its runs; the last part has the end and what all turns took. Closing this cancels what runs.

    Args:
        chosen: who answers.
        asked: the conversation.
        python: what it may do.
        begun: of `first`.
    """
    messages, spent, usage, request = list(asked.messages), 0.0, Usage(), begun
    said = False  # in an earlier turn
    for turn in range(python.turns + 1):
        whole, apart = Whole(), said
        async with aclosing(reply.parts(chosen.served.gateway, request.request, request.shape)) as parts:
            async for part in parts:
                whole.add(part)
                shown = [delta for delta in part.deltas if not _of_call(delta)]
                if apart and any(isinstance(delta, Content) for delta in shown):
                    shown, apart = [Content("\n\n"), *shown], False
                if part.finished is None:
                    yield replace(part, deltas=shown)
                elif shown:
                    yield Part(shown)
        assert whole.finished is not None
        usage, said = _sum(usage, whole.usage), said or bool(whole.message.content)
        calls = whole.message.calls
        left = begun.request.max_tokens - usage.tokens
        if not calls or whole.finished.finish is Finish.LENGTH or left < 1:
            finish = Finish.LENGTH if calls else whole.finished.finish
            yield Part(finished=replace(whole.finished, finish=finish, usage=usage))
            return
        messages.append(_assistant(whole))
        for call in calls:
            start = time.monotonic()
            ran = await python.run(call, python.seconds - spent)
            spent += time.monotonic() - start
            yield Part(ran=ran)
            messages.append({"role": "tool", "tool_call_id": call.id, "name": NAME, "content": told(ran.outcome)})
        over = turn + 1 >= python.turns or spent >= python.seconds
        use = ToolUse("none") if over else replace(asked.use, mode="auto")
        following = replace(asked, messages=messages, use=use, prefill=None, max_tokens=left)
        request = await prepared(chosen, with_tool(following))


def told(outcome: Outcome) -> str:
    """What the model reads of a run."""
    text = outcome.stdout
    if outcome.stderr:
        text += f"\n[standard error]\n{outcome.stderr}"
    if outcome.stopped:
        text += f"\n[stopped: {outcome.stopped}]"
    elif outcome.code:
        text += f"\n[exit code {outcome.code}]"
    if len(text) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
    return text.strip() or "[nothing was printed]"


def _refused(why: str) -> Outcome:
    """Of a program that did not run."""
    return Outcome(None, "", why, 0.0, "refused")


def _code(call: Call) -> tuple[str, str]:
    """A call's program, and what is wrong with the call."""
    if call.name != NAME:
        return "", f"there is no tool {call.name!r}; the only one is {NAME}"
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError) as error:
        return "", f"the arguments are not JSON ({error})"
    code = arguments.get("code") if isinstance(arguments, dict) else None
    if not isinstance(code, str) or "\0" in code or any("\ud800" <= letter <= "\udfff" for letter in code):
        return "", 'the arguments are not of the form {"code": "a program"}'
    return code, ""


def _of_call(delta: Any) -> bool:
    """Whether a delta is of a call that is run here; the text of a broken one is the client's to see."""
    return isinstance(delta, CallStart | CallArguments) or (isinstance(delta, CallEnd) and not delta.broken)


def _assistant(whole: Whole) -> Mapping[str, Any]:
    """The turn as the next prompt has it."""
    message = whole.message
    calls = [{"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in message.calls]
    thought = {"reasoning_content": message.reasoning} if message.reasoning else {}
    return {"role": "assistant", "content": message.content, "tool_calls": calls, **thought}


def _sum(a: Usage, b: Usage) -> Usage:
    """What two turns took together."""
    return Usage(**{name: getattr(a, name) + getattr(b, name) for name in Usage.__dataclass_fields__})
