"""From a conversation to a prompt: what the model's template writes, its tokens, what later prompts will share with it.

Conversations come in as the OpenAI API has them, in plain dictionaries, with text as content and arguments of calls as mappings
or text. Templates are particular: many know one system message and want it first, some want roles to take turns, some want
arguments as text. A conversation is therefore offered in several forms, and the first that the template takes is the prompt's.
Knows no protocol, no MLX.

    system and tools | turn | turn | … | head of the reply, perhaps the beginning of its reasoning
                     ^      ^      ^   ^   cuts
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from optiq.errors import InputError, ModelError
from optiq.models.thinking import Tags, tags_of
from optiq.serve.parse.output import Shape
from optiq.serve.template import ChatTemplate

Message = Mapping[str, Any]

LEADING = ("system", "developer")
RECENT_TURNS = 3  # ends of earlier turns that are cuts; those before them were, when they were recent
BILLING = "x-anthropic-billing-header"  # a block of Claude Code's system prompt that is another one at each call


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Args:
        text: what the template wrote.
        ids: its tokens.
        cuts: numbers of tokens with which later prompts will begin as well, rising.
        shape: how the reply is read.
        thinks: whether the model reasons before it answers.
    """

    text: str
    ids: tuple[int, ...]
    cuts: tuple[int, ...]
    shape: Shape
    thinks: bool


class Prompter:
    """Writes prompts for one model.

    Args:
        tokenizer: as `optiq.models.load.load` gives it.
        template: text of its chat template; "" for a model without one.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer = tokenizer
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        tokens = {name: str(getattr(tokenizer, name, None) or "") for name in names}
        self._template = ChatTemplate(template, tokens) if template else None
        self.tags: Tags | None = tags_of(template)

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        prefill: str | None = None,
    ) -> Prompt:
        """The prompt of a conversation.

        Args:
            messages: in order; roles system, developer, user, assistant, tool.
            tools: as in the OpenAI API.
            options: what the template reads beside them, such as `enable_thinking`.
            prefill: text with which the reply begins; it follows the head of the reply.

        Raises:
            InputError: no message, or the model has no template.
            ModelError: the template refuses every form of the conversation.
        """
        if self._template is None:
            raise InputError("this model has no chat template; use /v1/completions to continue a text")
        if not messages:
            raise InputError("messages is empty, expected at least one message")
        options = dict(options or {})
        if prefill is not None:
            options["enable_thinking"] = False
        form, text = self._first_form(_named(messages), tools, options)
        lengths = self._shared(form, tools, options, text)
        thinks = self._thinks(form, tools, options, text)
        text += prefill or ""
        ids, ends = self._encode(text)
        cuts = sorted({bisect.bisect_right(ends, length) for length in lengths})
        shape = Shape.of(self._template.text, text, tools)
        return Prompt(text, tuple(ids), tuple(cut for cut in cuts if cut), shape, thinks)

    def plain(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that is to be continued, with the tokenizer's own sign of beginning.

        Raises:
            InputError: there are none.
        """
        begun = self._tokenizer.bos_token is not None and text.startswith(self._tokenizer.bos_token)
        ids = tuple(int(token) for token in self._tokenizer.encode(text, add_special_tokens=not begun))
        if not ids:
            raise InputError("the prompt is empty (0 tokens), expected a text")
        return ids

    def _first_form(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> tuple[list[Message], str]:
        """The first form that the template takes, and what it writes."""
        assert self._template is not None
        refusal: ModelError | None = None
        for form in _forms(messages, _keeps_later_system(self._template)):
            try:
                return form, self._template.render(form, tools, options=options)
            except ModelError as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _shared(
        self, form: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any], text: str
    ) -> list[int]:
        """Lengths of beginnings that later prompts share: system and tools, ends of turns, all before the reply's head."""
        first = next((n for n, message in enumerate(form) if message["role"] not in LEADING), len(form))
        other = "?" if not str(form[first]["content"] if first < len(form) else "").startswith("?") else "!"
        beginnings: list[Sequence[Message]] = [[*form[:first], {"role": "user", "content": other}], form]
        questions = [n for n, message in enumerate(form) if message["role"] == "user" and n > first]
        beginnings += [form[:n] for n in questions[-RECENT_TURNS:]]
        return [length for part in beginnings if (length := self._common(part, tools, options, text))]

    def _common(self, part: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any], text: str) -> int:
        """How far the text begins as that of other messages; 0 where the template refuses those."""
        assert self._template is not None
        try:
            other = self._template.render(part, tools, open_reply=False, options=options)
        except ModelError:
            return 0
        return _common_prefix(text, other)

    def _thinks(self, form: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any], text: str) -> bool:
        """Some templates open the reasoning, others leave that to the model and close it where it is not wanted."""
        assert self._template is not None
        if self.tags is None or options.get("enable_thinking") is False:
            return False
        if self.tags.opened_by(text):
            return True
        return text != self._template.render(form, tools, options={**options, "enable_thinking": False})

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens, and for each where its text ends."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            ids = [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]
            return ids, [len(self._tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
        found = backend.encode(text, add_special_tokens=False)
        return list(found.ids), [end for _, end in found.offsets]


def _forms(messages: Sequence[Message], keeps_later_system: bool) -> Iterator[list[Message]]:
    """The conversation in the ways in which templates want it, the most faithful first."""
    plain = _led(messages, keeps_later_system)
    led = plain if any(message["role"] == "user" for message in plain) else _with_question(plain)
    alternating = _alternating(led)
    folded = _alternating(_folded(led))
    for convert in (_as_mapping, _as_text):
        seen: list[list[Message]] = []
        for form in (plain, led, alternating, folded):
            if form and form not in seen:
                seen.append(form)
                yield [_with_arguments(message, convert) for message in form]


def _named(messages: Sequence[Message]) -> list[Message]:
    """Results of tools with the tool's name, which some templates want and most clients leave to the call's id."""
    names = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()}
    return [
        {**message, "name": names[message["tool_call_id"]]}
        if message["role"] == "tool" and "name" not in message and message.get("tool_call_id") in names
        else message
        for message in messages
    ]


def _led(messages: Sequence[Message], keeps_later_system: bool) -> list[Message]:
    """One system message at the beginning; a later one stays in its place, as the user's where the template knows no other way.

    It stays in its place so that what stands before it is still the beginning of this prompt.
    """
    first = next((n for n, message in enumerate(messages) if message["role"] not in LEADING), len(messages))
    leading = "\n\n".join(text for message in messages[:first] if (text := message["content"]))
    found: list[Message] = [{"role": "system", "content": leading}] if leading else []
    role = "system" if keeps_later_system else "user"
    return found + [{**message, "role": role} if message["role"] in LEADING else message for message in messages[first:]]


def _with_question(messages: Sequence[Message]) -> list[Message]:
    """With an empty question behind the system message, for templates that want one."""
    at = 1 if messages and messages[0]["role"] == "system" else 0
    return [*messages[:at], {"role": "user", "content": ""}, *messages[at:]]


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role joined."""
    found: list[Message] = []
    for message in messages:
        last = found[-1] if found else None
        joins = last is not None and last["role"] == message["role"] and message["role"] in ("user", "assistant")
        if joins and last is not None and not last.get("tool_calls"):
            texts = [text for text in (last["content"], message["content"]) if text]
            found[-1] = {**last, **message, "content": "\n\n".join(texts)}
        else:
            found.append(message)
    return found


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The system message as the beginning of the first question, for templates that know none."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    return [{"role": "user", "content": messages[0]["content"]}, *messages[1:]]


def _with_arguments(message: Message, convert: Any) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    converted = [
        {**call, "function": {**call["function"], "arguments": convert(call["function"]["arguments"])}} for call in calls
    ]
    return {**message, "tool_calls": converted}


def _as_mapping(arguments: Any) -> Mapping[str, Any]:
    """Arguments as a mapping; a text that is none is the value of one argument, so that nothing of it is lost."""
    if isinstance(arguments, str):
        try:
            found = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {"arguments": arguments}
    return dict(arguments)


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _common_prefix(one: str, other: str) -> int:
    """Characters that two texts have in common at their beginning; by halving, for comparisons of slices are fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@lru_cache(maxsize=32)
def _keeps_later_system(template: ChatTemplate) -> bool:
    """Whether the template writes a system message that is not the first; some refuse it, some leave it out."""
    conversation = [("system", "One."), ("user", "Two?"), ("assistant", "Three."), ("system", "Four."), ("user", "Five?")]
    try:
        return "Four." in template.render([{"role": role, "content": text} for role, text in conversation])
    except ModelError:
        return False


def without_billing(blocks: Sequence[str]) -> list[str]:
    """Texts of a system prompt without those that change at each call and would spoil every prefix."""
    return [text for text in blocks if not text.lstrip().startswith(BILLING)]
