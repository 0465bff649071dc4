"""Bodies of /v1/chat/completions: what clients send and what they get. Data alone, and its translation into `asking`'s terms.

Source: https://platform.openai.com/docs/api-reference/chat/create and /object
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from optiq.serve.http import openai_fields as fields
from optiq.serve.http.asking import Asked
from optiq.serve.http.body import Answer, Body, invalid
from optiq.serve.prompt import without_billing

PYTHON_TYPES = ("python", "code_interpreter")  # of tools that the server runs


class PartField(Body):
    """A part of a message; its text counts."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Body):
    """What an earlier call was of."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class CallField(Body):
    """An earlier call."""

    id: str | None = None
    type: str = "function"
    function: CalledFunction | None = None


class MessageField(Body):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[PartField] | None = None
    name: str | None = None
    tool_calls: list[CallField] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class ChatBody(fields.Shaping):
    """A request for a chat completion."""

    messages: Annotated[list[MessageField], Field(min_length=1)]
    model: str | None = None
    adapter: str | None = None
    stream: bool | None = None
    stream_options: fields.StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: fields.Count = None
    max_completion_tokens: fields.Count = None
    stop: fields.Stop = None
    seed: fields.Seed = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=fields.MOST_LOGPROBS)] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: fields.Format | None = None
    tools: list[fields.ToolField] | None = None
    tool_choice: str | fields.NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Field(ge=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None

    def asked(self) -> Asked:
        """The same in the terms of all protocols."""
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "needs logprobs to be true")
        messages = [message_of(message, f"messages.{n}") for n, message in enumerate(self.messages)]
        prefill = None
        if self.continue_final_message:
            if messages[-1]["role"] != "assistant":
                raise invalid("continue_final_message", "needs the last message to be the assistant's")
            prefill = messages.pop()["content"]
        options = dict(self.chat_template_kwargs or {})
        budget = options.pop("thinking_budget", None) if self.thinking_budget is None else self.thinking_budget
        return Asked(
            messages=messages,
            tools=tools_of(self.tools or []),
            use=fields.use_of(self.tool_choice, self.parallel_tool_calls),
            answer=None if self.response_format is None else self.response_format.spec("response_format"),
            thinking=fields.thinking_of(self.reasoning_effort, self.enable_thinking, budget),
            sampling=self.sampling(),
            logit_bias=fields.bias_of(self.logit_bias),
            seed=self.seed,
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            stops=fields.stops_of(self.stop),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            options=options,
            prefill=prefill,
        )


def message_of(message: MessageField, field: str) -> dict[str, Any]:
    """A message as templates take it: its content a text."""
    found: dict[str, Any] = {"role": "tool" if message.role == "function" else message.role}
    content = message.content if message.content is not None else message.refusal or ""
    found["content"] = content if isinstance(content, str) else "".join(_texts(content, message.role, field))
    if message.role == "assistant":
        reasoning = message.reasoning_content or message.reasoning
        found |= {"reasoning_content": reasoning} if reasoning else {}
        calls = [call_of(call.id, call.function) for call in message.tool_calls or [] if call.function is not None]
        found |= {"tool_calls": calls} if calls else {}
    if message.role == "tool":
        found |= {"tool_call_id": message.tool_call_id or ""} | ({"name": message.name} if message.name else {})
    return found


def call_of(id: str | None, function: CalledFunction) -> dict[str, Any]:
    """An earlier call as templates take it."""
    return {"id": id or "", "type": "function", "function": {"name": function.name, "arguments": function.arguments}}


def _texts(parts: list[PartField], role: str, field: str) -> list[str]:
    texts = []
    for n, part in enumerate(parts):
        text = part.text if part.text is not None else part.refusal
        if text is None:
            raise invalid(f"{field}.content.{n}", f"is of type {part.type[:40]!r}, and this model reads text alone")
        texts.append(text)
    return without_billing(texts) if role in ("system", "developer") else texts


def tools_of(tools: list[fields.ToolField]) -> list[Mapping[str, Any]]:
    """Functions as templates take them; tools of other types are passed over."""
    found: list[Mapping[str, Any]] = []
    for n, tool in enumerate(tools):
        if tool.type != "function":
            continue
        if tool.function is None:
            raise invalid(f"tools.{n}.function", "is missing, expected an object with a name")
        found.append({"type": "function", "function": tool.function.model_dump(exclude_none=True)})
    return found


class TopLogprob(Answer):
    """A token that was likely."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the reply."""

    top_logprobs: list[TopLogprob]


class Logprobs(Answer):
    """Of the tokens of a reply, without its reasoning."""

    content: list[TokenLogprob] | None = None
    refusal: None = None


class ReplyFunction(Answer):
    """What a call is of; `arguments` is JSON."""

    name: str
    arguments: str


class ReplyCall(Answer):
    """A call."""

    id: str
    type: Literal["function"]
    function: ReplyFunction


class ToolRun(Answer):
    """A program that the server ran for the reply; `stopped` says which limit ended it, `tier` which sandbox it ran in."""

    id: str
    type: Literal["python"]
    code: str
    stdout: str
    stderr: str
    exit_code: int | None
    stopped: str | None
    seconds: float
    tier: str


class ReplyMessage(Answer):
    """A reply."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ReplyCall] | None = None
    tool_runs: list[ToolRun] | None = None


class Choice(Answer):
    """One of the replies to a request."""

    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: Logprobs | None = None


class ChatCompletion(Answer):
    """The replies to a request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: fields.UsageField
    timings: fields.TimingsField | None = None
    system_fingerprint: str | None = None
