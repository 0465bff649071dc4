"""Records as tokens, of which some carry loss.

A conversation is written by the model's own chat template. What an assistant wrote carries loss, with the token that ends its
turn; what the template writes before a reply (the opening of the turn, an empty block of reasoning) does not: that is the
longest beginning that a request would be given. Where a template writes earlier turns otherwise than when they were made
(Qwen3.5 leaves their reasoning out), each reply becomes a sample of its own, which ends with it. Texts are cut at the borders of
what carries loss and encoded piece by piece, as prompt and reply are in use.

Data in: `Record`s and a tokenizer. Data out: `Sample`s; of a preference two, chosen and rejected.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optiq.errors import InputError, ModelError
from optiq.lora.records import Record
from optiq.models.chat import ChatTokenizer

TURNS = ("auto", "on", "off")  # auto and on: every reply; off: the last one


@dataclass(frozen=True)
class Sample:
    """Tokens, and which of them carry loss.

    Args:
        place: file and line of the record.
        tokens: ids.
        loss: by token; never the first.
        cut: tokens that the limit took off the end.
    """

    place: str
    tokens: tuple[int, ...]
    loss: tuple[bool, ...]
    cut: int = 0

    @property
    def count(self) -> int:
        """Tokens that carry loss."""
        return sum(self.loss)


@dataclass(frozen=True)
class Encoder:
    """How records become samples.

    Args:
        tokenizer: the model's.
        length: most tokens of a sample; the end is cut off.
        mask_prompt: whether prompts carry no loss.
        all_turns: one of `TURNS`.
    """

    tokenizer: ChatTokenizer
    length: int
    mask_prompt: bool = True
    all_turns: str = "auto"

    def samples(self, record: Record) -> list[Sample]:
        """The samples of one record, without those that carry no loss once they are cut.

        Raises:
            InputError: a record that the chat template refuses or that has no reply.
        """
        try:
            found = [self._sample(record.place, pieces) for pieces in self._pieces(record)]
        except ModelError as error:
            raise InputError(f"{record.place}: {error}") from None
        if record.kind == "preference":
            return found if all(sample.count for sample in found) else []
        return [sample for sample in found if sample.count]

    def _pieces(self, record: Record) -> Iterator[list[tuple[str, bool]]]:
        """Texts of one sample after the other: (text, whether it carries loss)."""
        fields = record.fields
        if record.kind == "text":
            yield [(fields["text"], True), (self.tokenizer.end, True)]
        elif record.kind == "chat":
            yield from self._chat(record.place, _messages(fields["messages"]), fields.get("tools"))
        else:
            replies = [fields["completion"]] if record.kind == "completion" else [fields["chosen"], fields["rejected"]]
            for reply in replies:
                yield self._reply(record.place, fields["prompt"], reply, fields.get("tools"))

    def _reply(self, place: str, prompt: Any, reply: Any, tools: Any) -> list[tuple[str, bool]]:
        if not self.tokenizer.has_template:
            if not isinstance(prompt, str) or not isinstance(reply, str):
                raise InputError(f"{place}: messages, but the model has no chat template; give prompt and reply as text")
            return [(prompt, not self.mask_prompt), (reply, True), (self.tokenizer.end, True)]
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt)
        after = [{"role": "assistant", "content": reply}] if isinstance(reply, str) else _messages(reply)
        text = self._render([*before, *after], tools)
        return self._cut(text, [self._span(text, before, text, tools)])

    def _chat(self, place: str, messages: list[dict[str, Any]], tools: Any) -> Iterator[list[tuple[str, bool]]]:
        if not self.tokenizer.has_template:
            raise InputError(f"{place}: messages, but the model has no chat template; give text, or prompt and completion")
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not replies:
            raise InputError(f"{place}: no message of the assistant, so nothing carries loss; add a reply")
        if self.all_turns == "off":
            replies = replies[-1:]
        ended = {i: self._render(messages[: i + 1], tools) for i in replies}
        text = ended[replies[-1]]
        if all(text.startswith(part) for part in ended.values()):
            yield self._cut(text, [self._span(text, messages[:i], ended[i], tools) for i in replies])
            return
        for i in replies:
            yield self._cut(ended[i], [self._span(ended[i], messages[:i], ended[i], tools)])

    def _span(self, text: str, before: list[dict[str, Any]], ended: str, tools: Any) -> tuple[int, int]:
        """Where a reply begins and ends: behind what a request would give, before the white space after the turn."""
        prompts = (
            self._render(before, tools, add_generation_prompt=True, enable_thinking=thinking) for thinking in (False, True)
        )
        start = max(len(os.path.commonprefix([prompt, text])) for prompt in prompts)
        return start, max(start, len(ended.rstrip()))

    def _cut(self, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, bool]]:
        pieces, at = [], 0
        for start, end in spans:
            pieces += [(text[at:start], not self.mask_prompt), (text[start:end], True)]
            at = end
        return pieces  # what follows the last reply is never asked for

    def _render(self, messages: list[dict[str, Any]], tools: Any, **options: Any) -> str:
        text = self.tokenizer.render(messages, tools, **options)
        assert text is not None  # callers have asked for the template
        return text

    def _sample(self, place: str, pieces: Sequence[tuple[str, bool]]) -> Sample:
        tokens, loss = list(self.tokenizer.start), [False] * len(self.tokenizer.start)
        if pieces[0][0].startswith(self.tokenizer.decode(tokens)):  # the template has written it
            tokens, loss = [], []
        for text, carries in pieces:
            ids = self.tokenizer.encode(text) if text else []
            tokens += ids
            loss += [carries] * len(ids)
        if loss:
            loss[0] = False  # nothing stands before it
        return Sample(place, tuple(tokens[: self.length]), tuple(loss[: self.length]), max(0, len(tokens) - self.length))


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates expect them: reasoning under one name, arguments of calls as objects."""
    found = []
    for message in messages:
        message = dict(message)
        reasoning = message.pop("reasoning", None)
        if reasoning is not None:
            message.setdefault("reasoning_content", reasoning)
        if message.get("tool_calls"):
            message["tool_calls"] = [_call(call) for call in message["tool_calls"]]
        found.append(message)
    return found


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except json.JSONDecodeError:
        return call  # the template says what it thinks of it
