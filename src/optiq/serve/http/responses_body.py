"""Bodies of /v1/responses: what clients send, and its translation into `asking`'s terms. Data alone.

Items and tools of types that are not known here are passed over: coding agents send them to every server.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from optiq.serve.grammar_spec import GrammarSpec
from optiq.serve.http import openai_fields as fields
from optiq.serve.http.agent import NAME as PYTHON
from optiq.serve.http.asking import Asked, Thinking, ToolUse
from optiq.serve.http.body import Body, invalid
from optiq.serve.prompt import without_billing

WITH_LOGPROBS = "message.output_text.logprobs"
PYTHON_TYPES = ("code_interpreter", "python")  # of tools that the server runs
SEALED = b"optiq:"  # what our `encrypted_content` begins with; it is encoded, not encrypted


class PartField(Body):
    """A part of an item's content; its text counts."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(Body):
    """An item of the input; which fields count depends on its type."""

    type: str = "message"
    id: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[PartField] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[PartField] | dict[str, Any] | None = None
    encrypted_content: str | None = None
    code: str | None = None
    outputs: list[dict[str, Any]] | None = None


class ToolField(Body):
    """A tool: a function, or Python that the server runs; of other types the model does not hear."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(Body):
    """The function that must be called, or those that may be."""

    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[dict[str, Any]] | None = None


class TextFormat(Body):
    """What the reply must match."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextField(Body):
    """How the reply is written."""

    format: TextFormat | None = None


class Reasoning(Body):
    """How hard to think."""

    effort: str | None = None
    summary: str | None = None


class ResponseBody(Body):
    """A request for a response."""

    input: str | list[Item] | None = None
    model: str | None = None
    adapter: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    max_output_tokens: fields.Count = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: fields.Seed = None
    top_logprobs: Annotated[int, Field(ge=0, le=fields.MOST_LOGPROBS)] | None = None
    include: list[str] | None = None
    tools: list[ToolField] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextField | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def items(self) -> list[Item]:
        """The input."""
        if isinstance(self.input, str):
            return [Item(role="user", content=self.input)]
        return list(self.input or [])

    @property
    def wants_logprobs(self) -> bool:
        """Whether log probabilities are told."""
        return self.top_logprobs is not None or WITH_LOGPROBS in (self.include or [])

    def asked(self, messages: Sequence[Mapping[str, Any]]) -> Asked:
        """The same in the terms of all protocols.

        Args:
            messages: the whole conversation.
        """
        if self.background:
            raise invalid("background", "is true, and responses are not made in the background here")
        leading = [{"role": "system", "content": self.instructions}] if self.instructions else []
        effort = None if self.reasoning is None else self.reasoning.effort
        return Asked(
            messages=[*leading, *messages], tools=_tools(self.tools or []), use=self._use(), answer=self._answer(),
            thinking=Thinking.of_effort(effort),
            sampling={"temperature": self.temperature, "top_p": fields.SMALLEST_TOP_P if self.top_p == 0 else self.top_p},
            seed=self.seed, max_tokens=self.max_output_tokens,
            logprobs=(self.top_logprobs or 0) if self.wants_logprobs else None, options=self.chat_template_kwargs or {},
        )  # fmt: skip

    def _use(self) -> ToolUse:
        choice, several = self.tool_choice, self.parallel_tool_calls is not False
        if choice is None or isinstance(choice, str):
            return fields.use_of(choice, self.parallel_tool_calls)
        if choice.type == "function":
            if choice.name is None:
                raise invalid("tool_choice.name", "is missing, expected the name of a tool")
            return ToolUse("required", (choice.name,), several)
        if choice.type == "allowed_tools":
            return fields.allowed({"mode": choice.mode or "auto", "tools": choice.tools}, "tool_choice", several)
        if choice.type in PYTHON_TYPES:
            return ToolUse("required", (PYTHON,), several)
        return ToolUse(parallel=several)  # a tool of the provider's, which the model does not know

    def _answer(self) -> GrammarSpec | None:
        form = None if self.text is None else self.text.format
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return GrammarSpec("json_object")
        if form.schema_ is None:
            raise invalid("text.format.schema", "is missing, expected an object")
        return GrammarSpec.json_schema(form.schema_)


def _tools(tools: Sequence[ToolField]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for n, tool in enumerate(tools):
        if tool.type != "function":
            continue
        if not tool.name:
            raise invalid(f"tools.{n}.name", "is missing, expected a text")
        function = tool.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True)
        found.append({"type": "function", "function": function})
    return found


def messages_of(items: Sequence[Item], stored: Callable[[str], Item | None]) -> list[dict[str, Any]]:
    """Items as templates take them: reasoning, text and calls that follow each other are one message of the assistant.

    Args:
        items: in order.
        stored: an item of an earlier response by its id.
    """
    found: list[dict[str, Any]] = []
    for n, given in enumerate(items):
        item, field = given, f"input.{n}"
        if given.type == "item_reference":
            known = stored(given.id or "")
            if known is None:
                raise invalid(f"{field}.id", f"names {given.id!r}, and no item of that id is stored")
            item = known
        if item.type == "message":
            _add_message(found, item, field)
        elif item.type == "reasoning":
            _assistant(found, afresh=True)["reasoning_content"] = _reasoning(item)
        elif item.type == "function_call":
            if not item.name:
                raise invalid(f"{field}.name", "is missing, expected the name of a tool")
            function = {"name": item.name, "arguments": item.arguments or "{}"}
            call = {"id": item.call_id or item.id or "", "type": "function", "function": function}
            _assistant(found).setdefault("tool_calls", []).append(call)
        elif item.type == "code_interpreter_call":
            function = {"name": PYTHON, "arguments": json.dumps({"code": item.code or ""})}
            _assistant(found).setdefault("tool_calls", []).append({"id": item.id or "", "type": "function", "function": function})
            logs = "\n".join(str(output.get("logs", "")) for output in item.outputs or [])
            found.append({"role": "tool", "tool_call_id": item.id or "", "name": PYTHON, "content": logs})
        elif item.type == "function_call_output":
            found.append({"role": "tool", "tool_call_id": item.call_id or "", "content": _output(item.output)})
    return found


def _add_message(found: list[dict[str, Any]], item: Item, field: str) -> None:
    role = item.role or "user"
    texts = [item.content or ""] if not isinstance(item.content, list) else _texts(item.content, field)
    if role == "assistant":
        message = _assistant(found)
        message["content"] += "".join(texts)
    else:
        texts = without_billing(texts) if role != "user" else texts
        found.append({"role": role, "content": "".join(texts)})


def _texts(parts: Sequence[PartField], field: str) -> list[str]:
    texts = []
    for n, part in enumerate(parts):
        text = part.text if part.text is not None else part.refusal
        if text is None:
            raise invalid(f"{field}.content.{n}", f"is of type {part.type[:40]!r}, and this model reads text alone")
        texts.append(text)
    return texts


def _assistant(found: list[dict[str, Any]], afresh: bool = False) -> dict[str, Any]:
    """The assistant's message that goes on, or a new one; reasoning goes on with none that has said something."""
    last = found[-1] if found else None
    said = last is not None and (last.get("content") or last.get("tool_calls"))
    if last is None or last["role"] != "assistant" or (afresh and said):
        found.append({"role": "assistant", "content": ""})
    return found[-1]


def _output(output: Any) -> str:
    if isinstance(output, list):
        return "\n".join(part.text if part.text is not None else f"[{part.type} left out]" for part in output)
    return output if isinstance(output, str) else json.dumps(output or "", ensure_ascii=False)


def sealed(text: str) -> str:
    """Reasoning as clients keep it that do not let the server store it."""
    return base64.b64encode(SEALED + text.encode("utf-8", "replace")).decode()


def _reasoning(item: Item) -> str:
    if isinstance(item.content, list) and item.content:
        return "".join(part.text or "" for part in item.content)
    try:
        raw = base64.b64decode(item.encrypted_content or "", validate=True)
    except (binascii.Error, ValueError):
        return ""
    return raw.removeprefix(SEALED).decode("utf-8", "replace") if raw.startswith(SEALED) else ""
