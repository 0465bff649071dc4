"""What /v1/responses answers, as models: for the OpenAPI document. Data alone.

Source: https://platform.openai.com/docs/api-reference/responses/object
"""

from __future__ import annotations

from typing import Any, Literal

from optiq.serve.http.body import Answer
from optiq.serve.http.chat_body import TokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(Answer):
    """Text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class ReasoningText(Answer):
    """Text of reasoning."""

    type: Literal["reasoning_text"]
    text: str


class MessageItem(Answer):
    """A message."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningItem(Answer):
    """Reasoning; `encrypted_content` holds it for clients that send it back."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[Any]
    content: list[ReasoningText]
    encrypted_content: str


class CallItem(Answer):
    """A call."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


class RunLogs(Answer):
    """What a program printed, as the model read it."""

    type: Literal["logs"]
    logs: str


class RunItem(Answer):
    """A program that the server ran; `failed` where a limit stopped it. Each has a container of its own."""

    id: str
    type: Literal["code_interpreter_call"]
    status: Literal["completed", "failed"]
    code: str
    container_id: str
    outputs: list[RunLogs]


class InputDetails(Answer):
    """How many tokens of the prompt were known."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Answer):
    """Of what the reply's tokens are."""

    reasoning_tokens: int


class ResponseUsage(Answer):
    """What a response took."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(Answer):
    """Why a response is not whole."""

    reason: Literal["max_output_tokens"]


class ResponseObject(Answer):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[MessageItem | ReasoningItem | CallItem | RunItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    background: Literal[False]
    usage: ResponseUsage
    user: str | None


class InputTokens(Answer):
    """How long a prompt is."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class Deleted(Answer):
    """A response that is no longer kept."""

    id: str
    object: Literal["response.deleted"]
    deleted: Literal[True]


class InputItems(Answer):
    """What a response was the answer to."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    has_more: bool
    first_id: str | None
    last_id: str | None
