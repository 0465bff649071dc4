"""Fields that OpenAI's chat and completion APIs share, and what they mean to us. Data in: bodies. Data out: `asking`'s terms.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from optiq.generate.sampling import MAX_SEED
from optiq.serve.grammar_spec import GrammarSpec
from optiq.serve.http.asking import Thinking, ToolUse
from optiq.serve.http.body import Answer, Body, invalid
from optiq.serve.request import Usage

MOST_LOGPROBS = 20
SMALLEST_TOP_P = 1e-6  # a top_p of 0 takes the likeliest token

Stop = str | list[str] | None
Seed = Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)] | None
Count = Annotated[int, Field(ge=1, le=1 << 31)] | None


class Shaping(Body):
    """Settings of the draw."""

    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None

    def sampling(self) -> dict[str, float | None]:
        """By the names of `optiq.generate.sampling.SETTINGS`."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        found: dict[str, float | None] = {name: getattr(self, name) for name in names}
        if self.top_p == 0:
            found["top_p"] = SMALLEST_TOP_P
        if self.top_k == -1:
            found["top_k"] = 0
        return found


class StreamOptions(Body):
    """What a stream tells beside the reply."""

    include_usage: bool | None = None


class FunctionField(Body):
    """A tool: a function of the client's."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolField(Body):
    """A tool; of other types than `function` nothing is asked, and the model does not hear of them."""

    type: str = "function"
    function: FunctionField | None = None


class NamedFunction(Body):
    """The function that must be called."""

    name: str


class NamedTool(Body):
    """The tool that must be called, or those that may be."""

    type: str = "function"
    function: NamedFunction | None = None
    allowed_tools: dict[str, Any] | None = None


# Characters. A reply to a regular expression of half a million took half a minute, in which the engine did nothing else.
LONGEST_GRAMMAR = 100_000


class SchemaField(Body):
    """A schema with a name."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class Format(Body):
    """What the reply must match: `text`, `json_object`, `json_schema`, and, ours, `regex` and `lark` with their `grammar`."""

    type: Literal["text", "json_object", "json_schema", "regex", "lark"]
    json_schema: SchemaField | None = None
    grammar: Annotated[str | None, Field(max_length=LONGEST_GRAMMAR)] = None

    def spec(self, field: str) -> GrammarSpec | None:
        """The grammar; None where any text will do."""
        if self.type == "json_schema":
            if self.json_schema is None or self.json_schema.schema_ is None:
                raise invalid(f"{field}.json_schema", "is missing, expected an object with a schema")
            return GrammarSpec.json_schema(self.json_schema.schema_)
        if self.type in ("regex", "lark"):
            if not self.grammar:
                raise invalid(f"{field}.grammar", f"is missing, expected a text for type {self.type}")
            return GrammarSpec(self.type, self.grammar)
        return GrammarSpec("json_object") if self.type == "json_object" else None


class PromptDetails(Answer):
    """How many tokens of the prompt were known."""

    cached_tokens: int


class CompletionDetails(Answer):
    """Of what the reply's tokens are."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageField(Answer):
    """What a reply took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_of(usages: Sequence[Usage], reasoning_tokens: int) -> dict[str, Any]:
    """What replies to one prompt took together; the prompt counts once."""
    prompt = usages[0].prompt_tokens if usages else 0
    drawn = sum(usage.tokens for usage in usages)
    accepted = sum(usage.accepted for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": drawn,
        "total_tokens": prompt + drawn,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens if usages else 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning_tokens,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": sum(usage.drafted for usage in usages) - accepted,
        },
    }


class TimingsField(Answer):
    """How long replies took in the engine: milliseconds, and tokens per second where there is a time."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float | None
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float | None


def timings_of(usages: Sequence[Usage]) -> dict[str, Any]:
    """How long replies to one prompt took, as the engine timed them: an addition to OpenAI's protocol that some servers share.

    Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md (`timings`); milliseconds, tokens per second.
    """
    prompt_s = max((usage.prompt_s for usage in usages), default=0.0)
    decode_s = max((usage.decode_s for usage in usages), default=0.0)
    cached = usages[0].cached_tokens if usages else 0
    read = usages[0].prompt_tokens - cached if usages else 0
    drawn = sum(usage.tokens for usage in usages)
    later = drawn - len(usages)  # the first token of each reply belongs to reading
    return {
        "cache_n": cached,
        "prompt_n": read,
        "prompt_ms": 1000 * prompt_s,
        "prompt_per_second": read / prompt_s if prompt_s > 0 else None,
        "predicted_n": drawn,
        "predicted_ms": 1000 * decode_s,
        "predicted_per_second": later / decode_s if decode_s > 0 and later > 0 else None,
    }


def stops_of(stop: Stop, field: str = "stop") -> tuple[str, ...]:
    """Strings that end the reply."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in stops:
        raise invalid(field, 'is "", expected a text')
    return stops


def bias_of(bias: Mapping[str, float] | None) -> dict[int, float]:
    """By token id; -100 and 100 are as good as never and always."""
    found: dict[int, float] = {}
    for key, value in (bias or {}).items():
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            raise invalid("logit_bias", f"{key[:20]!r} is no token id, expected a whole number")
        if not -100 <= value <= 100:
            raise invalid(f"logit_bias.{key}", f"is {value:g}, expected a number from -100 to 100")
        found[int(key)] = value
    return found


def use_of(choice: str | NamedTool | None, parallel: bool | None) -> ToolUse:
    """How tools may be called."""
    several = parallel is not False
    if choice is None or isinstance(choice, str):
        modes = ("auto", "none", "required")
        if choice not in (None, *modes):
            raise invalid("tool_choice", f"is {choice[:40]!r}, expected one of {', '.join(modes)}, or a tool by name")
        return ToolUse(choice or "auto", parallel=several)
    if choice.function is not None:
        return ToolUse("required", (choice.function.name,), several)
    if choice.allowed_tools is not None:
        return allowed(choice.allowed_tools, "tool_choice.allowed_tools", several)
    raise invalid("tool_choice.function", "is missing, expected an object with the tool's name")


def allowed(given: Mapping[str, Any], field: str, parallel: bool) -> ToolUse:
    """Those tools of the request that may be called at all."""
    tools = given.get("tools")
    named = [tool.get("function", tool) for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    names = tuple(str(tool["name"]) for tool in named if isinstance(tool, Mapping) and "name" in tool)
    mode = given.get("mode", "auto")
    if mode not in ("auto", "required") or not names:
        raise invalid(field, "expected a mode (auto or required) and at least one tool by name")
    return ToolUse(mode, names, parallel)


def thinking_of(effort: str | None, wanted: bool | None, budget: int | None) -> Thinking:
    """How the reply reasons; what is said of it outright counts before the effort."""
    found = Thinking.of_effort(effort)
    return Thinking(found.wanted if wanted is None else wanted, found.budget if budget is None else budget, found.effort)
