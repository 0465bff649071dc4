"""The workbench's side of a server that `optiq serve` runs: which one it is, and what is asked of it over HTTP.

    queue -> served -> Served(url, model) -> models, adapters, metrics, replies as they are written

Knows OpenAI's chat protocol as far as a chat needs it, and no pages.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from optiq.errors import FormatError, InputError, ResourceError
from optiq.lab.jobs.job import ALIVE, SERVER
from optiq.lab.jobs.queue import Queue
from optiq.lab.text import line

SHORT_S = 10.0
SILENCE_S = 600.0  # a long prompt is read before the first word
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([-+.\deE]+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Served:
    """A server that answers: its job, its address, the name of its model, whether it runs programs."""

    job: int
    url: str
    model: str
    python: bool = False


def served(queue: Queue) -> Served | None:
    """The server that was started last and is up; None where there is none."""
    for job in reversed(queue.store.among(ALIVE)):
        if job.kind == SERVER and (found := queue.log(job.id).result):
            return Served(job.id, str(found["url"]), str(found["model"]), "--tools" in job.words)
    return None


def starting(queue: Queue) -> int | None:
    """The job of a server that is not up yet."""
    for job in reversed(queue.store.among(ALIVE)):
        if job.kind == SERVER and queue.log(job.id).result is None:
            return job.id
    return None


async def get(url: str, path: str) -> Any:
    """What a path answers, as JSON.

    Raises:
        ResourceError: the server does not answer, or answers with an error.
    """
    return json.loads(await _asked(url, "GET", path))


async def post(url: str, path: str, body: Mapping[str, Any]) -> Any:
    """The same with a body.

    Raises:
        ResourceError: the server does not answer, or answers with an error.
    """
    return json.loads(await _asked(url, "POST", path, body))


async def delete(url: str, path: str) -> Any:
    """Ask for something to go.

    Raises:
        ResourceError: the server does not answer, or answers with an error.
    """
    return json.loads(await _asked(url, "DELETE", path))


async def mount(url: str, adapter: str) -> None:
    """Have an adapter mounted; nothing is asked for where it is.

    Raises:
        ResourceError: the server does not answer, knows no such adapter, or cannot put it on its model.
    """
    if adapter not in (await get(url, "/v1/adapters"))["mounted"]:
        await post(url, "/v1/adapters", {"name": adapter})


async def metrics(url: str) -> dict[str, dict[str, float]]:
    """The server's numbers: by name, then by the values of their labels other than the model's.

    Raises:
        ResourceError: the server does not answer.
    """
    found: dict[str, dict[str, float]] = {}
    for text in (await _asked(url, "GET", "/metrics")).splitlines():
        sample = _SAMPLE.match(text)
        if sample is None:
            continue
        labels = [value for name, value in _LABEL.findall(sample.group(2) or "") if name != "model"]
        values = found.setdefault(sample.group(1), {})
        key = ",".join(labels)
        values[key] = values.get(key, 0.0) + float(sample.group(3))
    return found


async def _asked(url: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> str:
    try:
        async with httpx.AsyncClient(timeout=SHORT_S, trust_env=False) as client:
            answer = await client.request(method, url + path, json=body)
    except httpx.HTTPError as error:
        raise ResourceError(f"the server at {url} does not answer ({type(error).__name__}); look at its job") from None
    if answer.is_error:
        raise ResourceError(_message(answer.content, answer.status_code))
    return answer.text


@dataclass
class Reply:
    """What a reply took, complete when its stream has ended.

    Args:
        finish: stop, length or tool_calls; empty where it was stopped.
        seconds: of writing, from the first piece to the last, as this side saw them.
        speed: tokens per second as the server timed them; None where it did not say.
        runs: programs that the server ran for it, as it told them.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    finish: str = ""
    first_s: float = 0.0
    seconds: float = 0.0
    speed: float | None = None
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Speed of writing; the first token belongs to reading. Pieces may come in bursts, so the server's figure goes first."""
        if self.speed is not None:
            return self.speed
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else 0.0

    def facts(self) -> dict[str, Any]:
        """What is kept of it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "tokens": self.tokens,
            "finish": self.finish,
            "first_s": round(self.first_s, 3),
            "tokens_per_s": round(self.tokens_per_s, 1),
        }


async def replies(url: str, body: Mapping[str, Any], reply: Reply) -> AsyncIterator[tuple[str, str]]:
    """Ask for a chat completion and hand on its pieces: (``content`` or ``reasoning``, text).

    Args:
        body: of /v1/chat/completions, without how it streams.
        reply: filled in on the way.

    Raises:
        InputError: the server refuses the request, with its own words.
        ResourceError: it does not answer, or breaks off.
        FormatError: it answers in another protocol.
    """
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    begun = time.monotonic()
    limits = httpx.Timeout(SHORT_S, read=SILENCE_S)
    try:
        async with (
            httpx.AsyncClient(timeout=limits, trust_env=False) as client,
            client.stream("POST", url + "/v1/chat/completions", json=asked) as answer,
        ):
            if answer.is_error:
                raise InputError(_message(await answer.aread(), answer.status_code))
            async for text in answer.aiter_lines():
                if not text.startswith("data: ") or text == "data: [DONE]":
                    continue
                for piece in _pieces(text[6:], reply):
                    now = time.monotonic()
                    reply.first_s = reply.first_s or now - begun
                    reply.seconds = now - begun - reply.first_s
                    yield piece
    except httpx.HTTPError as error:
        raise ResourceError(f"the server at {url} broke off ({type(error).__name__}); look at its job, and ask again") from None


def _pieces(text: str, reply: Reply) -> list[tuple[str, str]]:
    """What one event of the stream holds."""
    try:
        chunk = json.loads(text)
        if "error" in chunk:
            raise ResourceError(line(chunk["error"].get("message", "the server reports an error"), 2000))
        if usage := chunk.get("usage"):
            reply.prompt_tokens, reply.tokens = usage["prompt_tokens"], usage["completion_tokens"]
            reply.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
            reply.speed = (chunk.get("timings") or {}).get("predicted_per_second")
        found = []
        for choice in chunk["choices"]:
            reply.finish = choice.get("finish_reason") or reply.finish
            delta = choice["delta"]
            found += [(kind, delta[key]) for kind, key in _KINDS if delta.get(key)]
            reply.runs += [dict(run) for run in delta.get("tool_runs") or []]
            for call in delta.get("tool_calls") or []:
                _call(reply, call)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"the server's stream has an event of another form ({error!r}); update optiq") from None
    return found


_KINDS = (("reasoning", "reasoning_content"), ("content", "content"))


def _call(reply: Reply, call: Mapping[str, Any]) -> None:
    """A piece of a call of a tool."""
    known = reply.calls.setdefault(int(call["index"]), {"name": "", "arguments": ""})
    function = call.get("function") or {}
    known["name"] += function.get("name") or ""
    known["arguments"] += function.get("arguments") or ""


def _message(content: bytes, status: int) -> str:
    """What an error's body says."""
    try:
        found = json.loads(content)
        return line(found["error"]["message"], 2000)
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {status}: {line(content, 300)}"
