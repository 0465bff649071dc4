"""What every protocol asks in the end: a conversation with settings, made a request of the engine and the shape of its reply.

    protocol -> Asked -> prepared(chosen, asked) -> Prepared: request, shape, prompt

Knows no protocol's fields; the fields named in its messages are those that protocols share.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from optiq.errors import InputError
from optiq.generate.sampling import MAX_SEED
from optiq.serve import calls
from optiq.serve.calls import Tool
from optiq.serve.grammar_spec import GrammarSpec
from optiq.serve.http.context import Chosen, Served
from optiq.serve.parse.output import Shape
from optiq.serve.prompt import Prompt, Prompter
from optiq.serve.request import Request

EFFORT_BUDGETS = {"low": 1024, "medium": 8192}  # tokens of reasoning; higher efforts have no limit
NO_EFFORT = ("none", "minimal")


@dataclass(frozen=True)
class ToolUse:
    """How a reply may call tools.

    Args:
        mode: auto, none, required.
        names: of the tools that may be called; empty for all.
        parallel: more than one call in a reply.
    """

    mode: str = "auto"
    names: tuple[str, ...] = ()
    parallel: bool = True


@dataclass(frozen=True)
class Thinking:
    """How a reply reasons.

    Args:
        wanted: None leaves it to the server and the template.
        budget: at most so many tokens; None for no limit.
        effort: as templates may read it; "" for none.
    """

    wanted: bool | None = None
    budget: int | None = None
    effort: str = ""

    @classmethod
    def of_effort(cls, effort: str | None) -> Thinking:
        """What an effort means: none at all, some with a budget, or without limit."""
        if not effort:
            return cls()
        return cls(effort not in NO_EFFORT, EFFORT_BUDGETS.get(effort), effort)


@dataclass(frozen=True)
class Asked:
    """A reply to a conversation.

    Args:
        messages: as `serve.prompt.Prompter.chat` takes them.
        tools: as in the OpenAI API.
        use: of the tools.
        answer: what the reply must match, or None.
        thinking: how it reasons.
        sampling: by the names of `optiq.generate.sampling.SETTINGS`; None stands for "not given".
        logit_bias: by token id.
        seed: of the draw; None for one of chance.
        max_tokens: None for the server's.
        stops: strings that end it.
        logprobs: alternatives to tell with each token, or None.
        options: what the template reads beside the conversation.
        prefill: how the reply begins, or None.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    use: ToolUse = ToolUse()
    answer: GrammarSpec | None = None
    thinking: Thinking = Thinking()
    sampling: Mapping[str, float | None] = field(default_factory=dict)
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    prefill: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A request as the engine takes it, and how its reply is read."""

    request: Request
    shape: Shape
    prompt: Prompt

    def choices(self, count: int) -> list[Request]:
        """Requests for several replies, each with a seed of its own."""
        seed = self.request.sampling.seed
        return [
            replace(self.request, sampling=replace(self.request.sampling, seed=(seed + n) % (MAX_SEED + 1))) for n in range(count)
        ]


async def prepared(chosen: Chosen, asked: Asked) -> Prepared:
    """The request of a conversation; prompts are written on a thread of their own.

    Raises:
        OptiqError: the conversation does not fit the model, or a setting or schema cannot be met.
    """
    return await asyncio.to_thread(_prepare, chosen, asked)


async def prompt_of(chosen: Chosen, asked: Asked) -> Prompt:
    """The prompt of a conversation alone. Raises as `prepared`."""
    return await asyncio.to_thread(_prompt, chosen.served, asked)


@lru_cache(maxsize=16)
def prompter(tokenizer: Any, template: str) -> Prompter:
    """The writer of a model's prompts; made once."""
    return Prompter(tokenizer, template)


def _prepare(chosen: Chosen, asked: Asked) -> Prepared:
    served = chosen.served
    prompt = _prompt(served, asked)
    grammar = _grammar(served, asked, prompt.shape)
    request = request_of(chosen, prompt.ids, asked, prompt.thinks, cuts=prompt.cuts, grammar=grammar)
    request = _reasoning(served, request, prompt, asked.thinking.budget)
    return Prepared(request, prompt.shape, prompt)


def _prompt(served: Served, asked: Asked) -> Prompt:
    writer = prompter(served.tokenizer, served.template)
    return writer.chat(asked.messages, _usable(asked), _options(served, asked), asked.prefill)


def request_of(
    chosen: Chosen,
    ids: tuple[int, ...],
    asked: Asked,
    thinks: bool,
    *,
    cuts: tuple[int, ...] = (),
    grammar: GrammarSpec | None = None,
) -> Request:
    """A request with the settings that were asked for and, where nothing was, the server's.

    Raises:
        InputError: a setting outside its range, a bias for a token that the model does not have.
    """
    served = chosen.served
    for token in asked.logit_bias:
        if not 0 <= token < (served.vocabulary or token + 1):
            raise InputError(f"logit_bias: token {token}, expected one from 0 to {served.vocabulary - 1}")
    seed = secrets.randbelow(MAX_SEED) if asked.seed is None else asked.seed % (MAX_SEED + 1)
    return Request(
        prompt=ids,
        sampling=served.sampling(asked.sampling, thinks, seed, asked.logit_bias).sampling,
        max_tokens=served.max_tokens if asked.max_tokens is None else asked.max_tokens,
        stop_ids=served.stop_ids,
        stops=asked.stops,
        cuts=cuts,
        caches=served.caches,
        adapter=chosen.adapter,
        grammar=grammar,
        logprobs=asked.logprobs,
        template=served.template_sha256 or hashlib.sha256(served.template.encode()).hexdigest(),
        draft=served.draft,
    )


def _usable(asked: Asked) -> list[Mapping[str, Any]]:
    """The tools of which the model hears: none of them where none may be called, so that it does not try.

    Raises:
        InputError: a tool must be called, and there is none of that name.
    """
    if asked.use.mode == "none":
        return []
    known = [str(tool["function"]["name"]) for tool in asked.tools]
    for name in asked.use.names:
        if name not in known:
            raise InputError(f"tool_choice: there is no tool {name!r}, expected one of {', '.join(known) or 'the tools (none)'}")
    if asked.use.mode == "required" and not known:
        raise InputError("tool_choice: a tool must be called, and there are no tools; give some")
    return list(asked.tools)


def _options(served: Served, asked: Asked) -> dict[str, Any]:
    """What the template reads; what the request says of it by name counts most."""
    wanted = served.thinking if asked.thinking.wanted is None else asked.thinking.wanted
    if asked.thinking.budget == 0:
        wanted = False
    found: dict[str, Any] = {} if wanted is None else {"enable_thinking": wanted}
    if asked.thinking.effort:
        found["reasoning_effort"] = asked.thinking.effort
    return {**found, **asked.options}


def _grammar(served: Served, asked: Asked, shape: Shape) -> GrammarSpec | None:
    """What the reply must match behind its reasoning.

    Raises:
        InputError: calls must be enforced, and this model writes none that we know.
    """
    given = [_tool(tool["function"]) for tool in _usable(asked)]
    may = [tool for tool in given if not asked.use.names or tool.name in asked.use.names]
    required = asked.use.mode == "required"
    if not may or not (required or asked.answer is not None or any(tool.strict for tool in may)):
        return asked.answer
    if shape.format is None:
        if required:
            raise InputError("tool_choice: this model's chat template knows no calls of tools; leave tool_choice out")
        return asked.answer
    if asked.answer is not None and asked.answer.kind not in ("json_schema", "json_object"):
        raise InputError(f"response_format {asked.answer.kind} cannot be combined with tools; leave one of them out")
    return calls.grammar(shape.format, may, served.tokenizer, required=required, parallel=asked.use.parallel, answer=asked.answer)


def _tool(function: Mapping[str, Any]) -> Tool:
    parameters = function.get("parameters")
    return Tool(function["name"], parameters if parameters else calls.ANYTHING, bool(function.get("strict")))


def _reasoning(served: Served, request: Request, prompt: Prompt, budget: int | None) -> Request:
    """The request with what begins and what ends the reasoning; as it is where the reply does not reason."""
    tags = prompt.shape.tags
    if tags is None or not prompt.thinks:
        return request
    opening = None if prompt.shape.opened else _ids(served, tags.open)
    if opening is not None and len(opening) != 1:
        return request  # a grammar binds at once then
    return replace(
        request, after=_ids(served, tags.close), opening=None if opening is None else opening[0], thinking_budget=budget
    )


def _ids(served: Served, text: str) -> tuple[int, ...]:
    return tuple(int(token) for token in served.tokenizer.encode(text, add_special_tokens=False))
