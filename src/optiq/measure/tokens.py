"""Samples to token rows ``[N, L]``: chat templates with fallbacks, packing, an even order of domains, a hash.

Knows nothing of models; a tokenizer is whatever satisfies `Tokenizer`. Data in: samples of ``optiq.measure.text``.
Data out: `Tokens`, the first artifact of the pipeline. Same samples, tokenizer and length give the same ids and hash
on any machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optiq.errors import InputError, ModelError
from optiq.measure.text import Message, Sample

__all__ = ["Tokenizer", "Tokens", "render_sample", "tokenise"]


class Tokenizer(Protocol):
    """What this module needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; the template's special tokens in it become single ids."""

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> str | None:
        """The chat as the model's template writes it, without a generation prompt; None where there is no template.

        Raises:
            ModelError: the template refuses this chat (no such role, no tools, roles that do not alternate).
        """


@dataclass(frozen=True)
class Tokens:
    """Token rows of one text set.

    Attributes:
        ids: ``[N, L]`` int32, rows of the domains in turn.
        domains: ``N`` names.
        documents: ``N`` ids of the sample that opens each row; rows are the units of the bootstrap.
        sha256: over the shape and the little-endian ids.
        notes: one line for each domain that gave fewer rows than asked for, and for chats that a template refused.
    """

    ids: NDArray[np.int32]
    domains: tuple[str, ...]
    documents: tuple[str, ...]
    sha256: str
    set_name: str
    notes: tuple[str, ...] = ()


def tokenise(
    samples: Sequence[Sample], tokenizer: Tokenizer, length: int, rows_per_domain: int, set_name: str = "calibration"
) -> Tokens:
    """Pack samples into rows of ``length`` tokens, at most ``rows_per_domain`` rows for each domain.

    A sample of at least ``length`` tokens gives its first ``length`` tokens; shorter ones are joined with the next of
    their domain until the row is full, and the rest of the last is dropped. Row ``i`` of every domain comes before
    row ``i + 1`` of any, so the first K rows cover the domains evenly for every K.

    Raises:
        InputError: a length or number of rows below one, or not one full row in all samples.
    """
    if length < 1 or rows_per_domain < 1:
        raise InputError(f"tokens: length {length} and rows per domain {rows_per_domain} must both be at least 1")
    by_domain: dict[str, list[Sample]] = {}
    for sample in samples:
        by_domain.setdefault(sample.domain, []).append(sample)
    refused: set[str] = set()
    rows = {domain: list(_rows(group, tokenizer, length, rows_per_domain, refused)) for domain, group in by_domain.items()}
    order = [(domain, i) for i in range(rows_per_domain) for domain in rows if i < len(rows[domain])]
    if not order:
        raise InputError(
            f"tokens: {len(samples)} samples hold fewer than {length} tokens per domain; "
            "give more text or a smaller calibration length"
        )
    notes = [
        f"{domain}: {len(found)} of {rows_per_domain} rows of {length} tokens ({len(by_domain[domain])} samples)"
        for domain, found in rows.items()
        if len(found) < rows_per_domain
    ]
    if refused:
        notes.append(f"the chat template refused {len(refused)} chats as they are; these were simplified")
    ids = np.array([rows[domain][i][1] for domain, i in order], dtype="<i4")
    return Tokens(
        ids=ids,
        domains=tuple(domain for domain, _ in order),
        documents=tuple(rows[domain][i][0] for domain, i in order),
        sha256=_digest(ids),
        set_name=set_name,
        notes=tuple(notes),
    )


def _digest(ids: NDArray[np.int32]) -> str:
    shape = "x".join(map(str, ids.shape))
    return hashlib.sha256(shape.encode() + b"\n" + ids.astype("<i4").tobytes()).hexdigest()


def _rows(
    group: list[Sample], tokenizer: Tokenizer, length: int, most: int, refused: set[str]
) -> Iterator[tuple[str, list[int]]]:
    made, opened, buffer = 0, "", list[int]()
    for sample in group:
        if made == most:
            return
        text, simplified = render_sample(sample, tokenizer)
        if simplified:
            refused.add(sample.id)
        opened = opened or sample.id
        buffer += tokenizer.encode(text)
        if len(buffer) >= length:
            yield opened, buffer[:length]
            made, opened, buffer = made + 1, "", []


def render_sample(sample: Sample, tokenizer: Tokenizer) -> tuple[str, bool]:
    """(the text that the model reads, whether the chat had to be simplified for the template).

    Where the template refuses a chat, the tool calls and results become text; then the system message joins the first
    user turn; then turns of one role in a row are joined. A tokenizer without a template gets ``User: …`` /
    ``Assistant: …``.
    """
    if sample.text is not None:
        return sample.text, False
    chat = list(sample.messages or ())
    flat = [_flat(message) for message in chat]
    attempts: list[tuple[list[Message], Sequence[dict[str, Any]] | None]] = [
        (chat, sample.tools),
        (_system_merged(chat), sample.tools),
        (_joined(flat), None),
        (_joined(_system_merged(flat)), None),
    ]
    for index, (messages, tools) in enumerate(attempts):
        try:
            text = tokenizer.render(messages, tools)
        except ModelError:
            continue
        return (_plain(flat), False) if text is None else (text, index > 0)
    return _plain(flat), True


def _flat(message: Message) -> Message:
    """The message with tool calls and results as text of the ordinary roles."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"Tool result: {message['content']}"}
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return {"role": message["role"], "content": "\n".join(filter(None, [message["content"], *calls]))}


def _system_merged(chat: list[Message]) -> list[Message]:
    """The chat with its system message as the head of the first user turn."""
    if chat[0]["role"] != "system":
        return chat
    rest = [dict(message) for message in chat[1:]]
    first = next((message for message in rest if message["role"] == "user"), None)
    if first is None:
        return chat
    first["content"] = f"{chat[0]['content']}\n\n{first['content']}"
    return rest


def _joined(chat: list[Message]) -> list[Message]:
    """The chat with turns of one role in a row made one, which strictly alternating templates need."""
    joined: list[Message] = []
    for message in chat:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = {"role": message["role"], "content": f"{joined[-1]['content']}\n{message['content']}"}
        else:
            joined.append(dict(message))
    return joined


def _plain(chat: list[Message]) -> str:
    return "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in chat) + "\n"
