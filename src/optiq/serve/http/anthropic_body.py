"""Bodies of Anthropic's /v1/messages: what clients send and what they get. Data alone, and its translation into `asking`'s terms.

Coding agents send more than the API's pages say: blocks and tools of types that are not known here are passed over.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from optiq.sandbox import Outcome
from optiq.serve.grammar_spec import GrammarSpec
from optiq.serve.http.agent import NAME as PYTHON
from optiq.serve.http.agent import told
from optiq.serve.http.asking import Asked, Thinking, ToolUse
from optiq.serve.http.body import Answer, Body, invalid
from optiq.serve.http.openai_fields import SMALLEST_TOP_P
from optiq.serve.prompt import without_billing

PYTHON_TYPES = ("code_execution_20250522", "python")  # of tools that the server runs
PYTHON_NAME = "code_execution"  # of those calls
JOINT = "\n\n"  # between texts of one message
UNSEEN = "[{} left out: this model reads text alone]"  # within a tool's result, which the client cannot change


class Block(Body):
    """A piece of content; which fields count depends on its type."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | dict[str, Any] | None = None
    is_error: bool | None = None
    source: str | dict[str, Any] | None = None
    title: str | None = None


class MessageField(Body):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolField(Body):
    """A tool: of type `custom`, or Python that the server runs; of others, the provider's own, the model does not hear."""

    type: str | None = None
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(Body):
    """How tools may be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingField(Body):
    """Whether to reason, and how long; `adaptive` leaves it to the model."""

    type: str
    budget_tokens: Annotated[int, Field(ge=0)] | None = None


class OutputFormat(Body):
    """What the reply must match."""

    type: str
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class OutputConfig(Body):
    """How hard to try, and what the reply must match."""

    effort: str | None = None
    format: OutputFormat | None = None


class PromptBody(Body):
    """What a prompt is made of."""

    messages: Annotated[list[MessageField], Field(min_length=1)]
    model: str | None = None
    adapter: str | None = None
    system: str | list[Block] | None = None
    tools: list[ToolField] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingField | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    def asked(self, thinks: bool | None) -> Asked:
        """The same in the terms of all protocols.

        Args:
            thinks: whether the server thinks where the request does not say; None: it does not, as the API has it.
        """
        messages = _system(self.system)
        for n, message in enumerate(self.messages):
            messages += _messages(message, f"messages.{n}")
        prefill = None
        if messages and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
            prefill = messages.pop()["content"]
        return Asked(
            messages=messages, tools=_tools(self.tools or []), use=self._use(), answer=self._answer(),
            thinking=self._thinking(thinks), prefill=prefill or None,
        )  # fmt: skip

    def _use(self) -> ToolUse:
        choice = self.tool_choice
        if choice is None:
            return ToolUse()
        if choice.type == "tool" and choice.name is None:
            raise invalid("tool_choice.name", "is missing, expected the name of a tool")
        mode = {"any": "required", "tool": "required"}.get(choice.type, choice.type)
        names = (choice.name,) if choice.type == "tool" and choice.name is not None else ()
        if names == (PYTHON_NAME,) and any(tool.type in PYTHON_TYPES for tool in self.tools or []):
            names = (PYTHON,)
        return ToolUse(mode, names, parallel=not choice.disable_parallel_tool_use)

    def _thinking(self, thinks: bool | None) -> Thinking:
        effort = Thinking.of_effort(None if self.output_config is None else self.output_config.effort)
        given = self.thinking
        if given is None:
            return Thinking(bool(thinks), effort.budget, effort.effort)
        if given.type == "disabled":
            return Thinking(False)
        if given.type == "adaptive":
            return Thinking(None, effort.budget, effort.effort)
        return Thinking(True, effort.budget if given.budget_tokens is None else given.budget_tokens, effort.effort)

    def _answer(self) -> GrammarSpec | None:
        within = None if self.output_config is None else self.output_config.format
        field, found = ("output_config.format", within) if within is not None else ("output_format", self.output_format)
        if found is None:
            return None
        if found.type != "json_schema" or found.schema_ is None:
            raise invalid(field, "expected type json_schema with a schema")
        return GrammarSpec.json_schema(found.schema_)


class MessagesBody(PromptBody):
    """A request for a message."""

    max_tokens: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    seed: Annotated[int, Field(ge=0, le=1 << 62)] | None = None

    def sampling(self) -> dict[str, float | None]:
        """By the names of `optiq.generate.sampling.SETTINGS`."""
        top_p = SMALLEST_TOP_P if self.top_p == 0 else self.top_p
        return {"temperature": self.temperature, "top_p": top_p, "top_k": self.top_k}

    def stops(self) -> tuple[str, ...]:
        """Strings that end the reply."""
        if "" in (self.stop_sequences or []):
            raise invalid("stop_sequences", 'holds "", expected texts')
        return tuple(self.stop_sequences or ())


def _system(system: str | list[Block] | None) -> list[dict[str, Any]]:
    blocks = [system] if isinstance(system, str) else [block.text for block in system or [] if block.text]
    text = JOINT.join(without_billing(blocks))
    return [{"role": "system", "content": text}] if text else []


def _messages(message: MessageField, field: str) -> list[dict[str, Any]]:
    """A message as templates take it: results of tools are messages of their own."""
    blocks = [Block(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    if message.role == "assistant":
        return _assistant(blocks)
    if message.role == "system":
        return _system(blocks) if blocks else []
    found: list[dict[str, Any]] = []
    texts: list[str] = []
    for n, block in enumerate(blocks):
        if block.type == "tool_result":
            found += [{"role": "user", "content": JOINT.join(texts)}] if texts else []
            texts = []
            found.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "content": _result(block)})
        elif (text := _text(block, f"{field}.content.{n}")) is not None:
            texts.append(text)
    if texts or not found:
        found.append({"role": "user", "content": JOINT.join(texts)})
    return found


def _assistant(blocks: list[Block]) -> list[dict[str, Any]]:
    """An earlier reply, in turns where the server ran programs."""
    found: list[dict[str, Any]] = []
    turn: list[Block] = []
    for block in blocks:
        if block.type == "code_execution_tool_result":
            found.append(_turn(turn))
            found.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "name": PYTHON, "content": _printed(block)})
            turn = []
        else:
            turn.append(block)
    return [*found, _turn(turn)] if turn or not found else found


def _printed(block: Block) -> str:
    """What the model read of an earlier run."""
    content = block.content if isinstance(block.content, dict) else {}
    if "error_code" in content:
        return told(Outcome(None, "", "", 0.0, str(content["error_code"])))
    code = content.get("return_code", 0)
    texts = [str(content.get(name) or "") for name in ("stdout", "stderr")]
    return told(Outcome(code if isinstance(code, int) else None, texts[0], texts[1], 0.0))


def _turn(blocks: list[Block]) -> dict[str, Any]:
    """What the model said before a result; a signature is nobody's business here."""
    found: dict[str, Any] = {"role": "assistant"}
    found["content"] = JOINT.join(block.text for block in blocks if block.type == "text" and block.text)
    reasoning = JOINT.join(block.thinking for block in blocks if block.type == "thinking" and block.thinking)
    calls = [
        {
            "id": block.id or "",
            "type": "function",
            "function": {"name": block.name if block.type == "tool_use" else PYTHON, "arguments": block.input or {}},
        }
        for block in blocks
        if (block.type == "tool_use" and block.name) or (block.type == "server_tool_use" and block.name == PYTHON_NAME)
    ]
    return found | ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})


def _text(block: Block, field: str) -> str | None:
    """The text of a user's block; None for one that is passed over."""
    if block.type == "text":
        return block.text or ""
    if block.type == "image":
        raise invalid(field, "is an image, and this model reads text alone")
    if block.type == "document":
        source = block.source if isinstance(block.source, dict) else {}
        if not isinstance(source.get("data"), str) or source.get("type") != "text":
            raise invalid(field, "is a document without plain text, and this model reads text alone")
        return f"{block.title}\n{source['data']}" if block.title else str(source["data"])
    return None


def _result(block: Block) -> str:
    """What a tool gave back, as a text."""
    content = block.content
    if content is None or isinstance(content, str):
        text = content or ""
    elif isinstance(content, dict):
        text = json.dumps(content, ensure_ascii=False)
    else:
        text = "\n".join(part.text if part.text is not None else UNSEEN.format(part.type) for part in content)
    return f"Error: {text}" if block.is_error else text


def _tools(tools: list[ToolField]) -> list[Mapping[str, Any]]:
    """Tools as templates take them."""
    found: list[Mapping[str, Any]] = []
    for n, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            continue
        if not tool.name:
            raise invalid(f"tools.{n}.name", "is missing, expected a text")
        function: dict[str, Any] = {"name": tool.name}
        function |= {"description": tool.description} if tool.description is not None else {}
        function |= {"parameters": tool.input_schema} if tool.input_schema is not None else {}
        found.append({"type": "function", "function": function | ({"strict": True} if tool.strict else {})})
    return found


class UsageField(Answer):
    """What a message took; `input_tokens` are those that were not in the cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class TextBlock(Answer):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Answer):
    """Reasoning."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(Answer):
    """A call."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ServerToolUseBlock(Answer):
    """A program that the server ran."""

    type: Literal["server_tool_use"]
    id: str
    name: Literal["code_execution"]
    input: dict[str, str]


class RunResult(Answer):
    """How it ended."""

    type: Literal["code_execution_result"]
    stdout: str
    stderr: str
    return_code: int
    content: list[dict[str, str]]


class RunResultBlock(Answer):
    """What became of a program."""

    type: Literal["code_execution_tool_result"]
    tool_use_id: str
    content: RunResult


class Message(Answer):
    """A reply."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock | ServerToolUseBlock | RunResultBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: UsageField


class TokenCount(Answer):
    """How many tokens a prompt has."""

    input_tokens: int
