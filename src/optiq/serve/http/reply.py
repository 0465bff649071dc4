"""One reply while it arrives: events of an engine to typed pieces of text, for protocols to spell out.

A failure of a parser ends the reply whose text it read, and no other. Knows no protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar

from optiq.errors import InputError
from optiq.sandbox import Outcome
from optiq.serve.gateway import Gateway, Unavailable
from optiq.serve.parse.deltas import CallEnd, CallStart, Delta, Message, gather
from optiq.serve.parse.output import Output, Shape
from optiq.serve.request import Finish, Finished, Progress, Request, Token, Usage

T = TypeVar("T")


@dataclass(frozen=True)
class Ran:
    """A program that the server ran for the reply.

    Args:
        id: of the call.
        code: the program.
        outcome: how it ended.
        tier: the sandbox that it ran in.
    """

    id: str
    code: str
    outcome: Outcome
    tier: str


@dataclass(frozen=True)
class Part:
    """What one event of the engine means for the reply.

    Args:
        deltas: what is certain of it now.
        token: the one that was drawn.
        reasoning: whether that token belongs to the reasoning.
        progress: of reading the prompt.
        ran: a program that was run between two turns of the reply.
        finished: the end.
    """

    deltas: Sequence[Delta] = ()
    token: Token | None = None
    reasoning: bool = False
    progress: Progress | None = None
    ran: Ran | None = None
    finished: Finished | None = None


async def parts(
    gateway: Gateway, request: Request, shape: Shape, *, one_call: bool = False, new_id: Callable[[], str] | None = None
) -> AsyncGenerator[Part, None]:
    """A reply, piece by piece; the last one has its end. Closing this cancels the request.

    Args:
        gateway: the engine.
        request: what is asked of it.
        shape: how its text is read.
        one_call: end the reply with its first call.
        new_id: makes ids of calls; None for the format's own.

    Raises:
        Refused, InputError, Unavailable: as `Gateway.run`; also where the engine gave up on the request.
    """
    output = Output(shape, new_id)
    usage = Usage(prompt_tokens=len(request.prompt))
    async with aclosing(gateway.run(request)) as events:
        async for event in events:
            if isinstance(event, Progress):
                usage = replace(usage, cached_tokens=event.cached)
                yield Part(progress=event)
            elif isinstance(event, Token):
                reasoning = output.thinking
                usage = replace(usage, tokens=usage.tokens + 1)
                deltas = output.add(event.text)
                if one_call and any(isinstance(delta, CallEnd) and not delta.broken for delta in deltas):
                    yield Part(up_to_call(deltas), event, reasoning)
                    yield Part(finished=Finished(event.request, Finish.STOP, usage))
                    return
                yield Part(deltas, event, reasoning)
            else:
                _check(event)
                yield Part([*output.add(event.text), *output.finish()], finished=event)


def up_to_call(deltas: Sequence[Delta]) -> list[Delta]:
    """Deltas up to the end of the first whole call among them."""
    end = next(n for n, delta in enumerate(deltas) if isinstance(delta, CallEnd) and not delta.broken)
    return list(deltas[: end + 1])


def _check(finished: Finished) -> None:
    """A reply that did not come to its own end is none."""
    if finished.finish is Finish.REFUSED:
        raise InputError(finished.error)
    if finished.finish is Finish.FAILED:
        raise Unavailable(f"the engine failed at this request: {finished.error}")
    if finished.finish is Finish.CANCELLED:
        raise Unavailable("the request was cancelled by the server; try again")


@dataclass
class Whole:
    """A reply that adds up.

    Args:
        deltas, tokens: in order; `tokens` without those of the reasoning.
        reasoning_tokens: how many belong to the reasoning.
        runs: of programs, in order.
        finished: the end, once it is there.
    """

    deltas: list[Delta] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    reasoning_tokens: int = 0
    runs: list[Ran] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, part: Part) -> None:
        """The next part."""
        self.deltas += part.deltas
        self.runs += [] if part.ran is None else [part.ran]
        self.finished = part.finished or self.finished
        if part.token is not None and part.reasoning:
            self.reasoning_tokens += 1
        elif part.token is not None:
            self.tokens.append(part.token)

    @property
    def message(self) -> Message:
        """What the deltas add up to."""
        return gather(self.deltas)

    @property
    def usage(self) -> Usage:
        """What it took."""
        return Usage() if self.finished is None else self.finished.usage

    @property
    def calls(self) -> bool:
        """Whether it holds a whole call."""
        started = {delta.index for delta in self.deltas if isinstance(delta, CallStart)}
        return any(isinstance(delta, CallEnd) and not delta.broken and delta.index in started for delta in self.deltas)


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Several streams as one, each piece with the number of its stream; the first failure ends all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for piece in only:
                yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(number: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    await queue.put((number, piece))
            await queue.put(None)
        except Exception as error:  # raised where the streams are read
            await queue.put(error)

    tasks = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
