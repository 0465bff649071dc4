"""/v1/completions: texts continued, and texts scored (echo with log probabilities) for programs that evaluate models.

Source: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from optiq.serve.http import body, reply
from optiq.serve.http import openai_fields as fields
from optiq.serve.http.asking import Asked, prompter, request_of
from optiq.serve.http.body import Answer, invalid
from optiq.serve.http.context import Chosen, Context
from optiq.serve.http.openai_errors import broken
from optiq.serve.http.reply import Part, Whole
from optiq.serve.http.stream import EventStream, frame
from optiq.serve.http.token_text import LEAST, TokenTexts, token_texts
from optiq.serve.parse.output import Shape
from optiq.serve.request import Finish, Logprob, Request, Scored

MOST_PROMPTS = 128
MAX_TOKENS = 16  # where the request does not say, as in OpenAI's API
DONE = b"data: [DONE]\n\n"

Ids = list[int]


class CompletionBody(fields.Shaping):
    """A request for completions."""

    prompt: str | Ids | list[str] | list[Ids]
    model: str | None = None
    adapter: str | None = None
    stream: bool | None = None
    stream_options: fields.StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    stop: fields.Stop = None
    seed: fields.Seed = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=fields.MOST_LOGPROBS)] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: fields.Format | None = None

    def prompts(self) -> list[str | Ids]:
        """The prompts, one or several."""
        prompt: Any = self.prompt
        single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        found: list[Any] = [prompt] if single else prompt
        if not 0 < len(found) <= MOST_PROMPTS:
            raise invalid("prompt", f"holds {len(found)} prompts, expected from 1 to {MOST_PROMPTS}")
        return found

    def asked(self) -> Asked:
        """The settings in the terms of all protocols."""
        return Asked(
            messages=(), sampling=self.sampling(), logit_bias=fields.bias_of(self.logit_bias), seed=self.seed,
            max_tokens=MAX_TOKENS if self.max_tokens is None else max(1, self.max_tokens),
            stops=fields.stops_of(self.stop), logprobs=self.logprobs,
        )  # fmt: skip


class Logprobs(Answer):
    """Of tokens, each with its alternatives and its place in the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(Answer):
    """One completion."""

    text: str
    index: int
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Answer):
    """The completions of a request, prompt by prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: fields.UsageField


@dataclass
class Continued:
    """One choice while it arrives.

    Args:
        request: what the engine is asked.
        texts: of single tokens.
        prompt: text of the prompt, where it is to be repeated.
        drops: nothing but the prompt was asked for, so what is drawn is dropped.
    """

    request: Request
    texts: TokenTexts
    prompt: str
    drops: bool
    whole: Whole = field(default_factory=Whole)
    scored: list[Scored] = field(default_factory=list)
    place: int = 0  # in the text, of the next token
    told: int = 0

    def add(self, part: Part) -> str:
        """The text that a part adds."""
        if part.progress is not None:
            self.scored += part.progress.scored
        if self.drops and part.finished is None:
            return ""
        before = len(self.whole.deltas)
        self.whole.add(replace(part, deltas=()) if self.drops else part)
        return "".join(getattr(delta, "text", "") for delta in self.whole.deltas[before:])

    def logprobs(self, first: bool) -> dict[str, Any] | None:
        """Those that were not told yet; the first time with those of the prompt, where it is repeated."""
        if self.request.logprobs is None:
            return None
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        if first and self.prompt:
            self._tell(told, self.request.prompt[0], None, ())
            for one in self.scored:
                self._tell(told, one.token, one.logprob, one.top)
        tokens = self.whole.tokens[self.told :]
        self.told += len(tokens)
        for token in tokens:
            self._tell(told, token.id, token.logprob, token.top)
        return told

    def _tell(self, told: dict[str, list[Any]], token: int, logprob: float | None, top: Sequence[Logprob]) -> None:
        text = self.texts.text_of(token)
        told["tokens"].append(text)
        told["token_logprobs"].append(None if logprob is None else max(logprob, LEAST))
        likely = {self.texts.text_of(one.token): max(one.logprob, LEAST) for one in top}
        told["top_logprobs"].append(None if logprob is None else likely)
        told["text_offset"].append(self.place)
        self.place += len(text)

    @property
    def reason(self) -> str:
        """Why it ended."""
        finished = self.whole.finished
        return "length" if finished is not None and finished.finish is Finish.LENGTH else "stop"


async def create(context: Context, http: HttpRequest) -> Response:
    """Answer a request."""
    asked = body.checked(CompletionBody, await body.read(http))
    if (asked.n or 1) > context.limits.choices:
        raise invalid("n", f"is {asked.n}, expected at most {context.limits.choices}")
    if asked.max_tokens == 0 and not asked.echo:
        raise invalid("max_tokens", "is 0, expected at least 1 unless echo is true")
    if asked.suffix:
        raise invalid("suffix", "is given, and texts are only continued at their end here; leave it out")
    if asked.best_of not in (None, asked.n or 1):
        raise invalid("best_of", f"is {asked.best_of}, expected n ({asked.n or 1}): every completion is returned here")
    chosen = await context.models.open(asked.model, asked.adapter)
    choices = await asyncio.to_thread(_choices, chosen, asked)
    head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()), "model": chosen.name}
    if asked.stream:
        frames = _frames(chosen, asked, head, choices)
        return EventStream(frames, broken, ping_s=context.limits.ping_s)
    return JSONResponse(await _whole(chosen, head, choices))


def _choices(chosen: Chosen, asked: CompletionBody) -> list[Continued]:
    """All choices, those of one prompt next to each other."""
    served, settings = chosen.served, asked.asked()
    grammar = None if asked.response_format is None else asked.response_format.spec("response_format")
    found: list[Continued] = []
    for place, prompt in enumerate(asked.prompts()):
        ids = prompter(served.tokenizer, "").plain(prompt) if isinstance(prompt, str) else _ids(chosen, prompt, place)
        request = request_of(chosen, ids, settings, False, grammar=grammar)
        if asked.echo and asked.logprobs is not None:
            request = replace(request, prompt_logprobs=asked.logprobs)
        text = "" if not asked.echo else prompt if isinstance(prompt, str) else str(served.tokenizer.decode(list(ids)))
        for n in range(asked.n or 1):
            one = replace(request, sampling=replace(request.sampling, seed=request.sampling.seed + n))
            found.append(Continued(one, token_texts(served.tokenizer), text, asked.max_tokens == 0))
    return found


def _ids(chosen: Chosen, prompt: Sequence[int], place: int) -> tuple[int, ...]:
    """Token ids as the client gave them."""
    most = chosen.served.vocabulary
    for token in prompt:
        if token < 0 or (most and token >= most):
            raise invalid(f"prompt.{place}", f"holds token {token}, expected ids from 0 to {most - 1}")
    return tuple(prompt)


def _parts(chosen: Chosen, choices: Sequence[Continued]) -> AsyncGenerator[tuple[int, Part], None]:
    gateway = chosen.served.gateway
    return reply.merged([reply.parts(gateway, choice.request, Shape()) for choice in choices])


async def _whole(chosen: Chosen, head: dict[str, Any], choices: Sequence[Continued]) -> dict[str, Any]:
    texts = [[choice.prompt] for choice in choices]
    async with aclosing(_parts(chosen, choices)) as parts:
        async for number, part in parts:
            texts[number].append(choices[number].add(part))
    told = [
        {"text": "".join(texts[n]), "index": n, "logprobs": choice.logprobs(first=True), "finish_reason": choice.reason}
        for n, choice in enumerate(choices)
    ]
    return {**head, "choices": told, "usage": _usage(choices)}


def _usage(choices: Sequence[Continued]) -> dict[str, Any]:
    """What all took; each prompt counts once, what was drawn and dropped does not."""
    prompts = {choice.request.prompt: choice.whole.usage for choice in reversed(choices)}
    found = fields.usage_of(
        [replace(choice.whole.usage, tokens=0 if choice.drops else choice.whole.usage.tokens) for choice in choices], 0
    )
    found["prompt_tokens"] = sum(len(prompt) for prompt in prompts)
    found["total_tokens"] = found["prompt_tokens"] + found["completion_tokens"]
    found["prompt_tokens_details"] = {"cached_tokens": sum(usage.cached_tokens for usage in prompts.values())}
    return found


async def _frames(
    chosen: Chosen, asked: CompletionBody, head: dict[str, Any], choices: Sequence[Continued]
) -> AsyncGenerator[bytes, None]:
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
    extra = {"usage": None} if with_usage else {}
    begun = [False] * len(choices)
    async with aclosing(_parts(chosen, choices)) as parts:
        async for number, part in parts:
            choice = choices[number]
            text = choice.add(part)
            if not (text or part.finished is not None):
                continue
            told = {
                "text": text if begun[number] else choice.prompt + text,
                "index": number,
                "logprobs": choice.logprobs(first=not begun[number]),
                "finish_reason": None if part.finished is None else choice.reason,
            }
            begun[number] = True
            yield frame({**head, "choices": [told], **extra})
    if with_usage:
        yield frame({**head, "choices": [], "usage": _usage(choices)})
    yield DONE
