"""Tokenizers and chat templates of a checkpoint, behind the small face that the measuring code needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from optiq.errors import InputError, ModelError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json")
# What a template can end with: its own refusal, or any mistake of a program.
TEMPLATE_FAILURES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class ChatTokenizer:
    """A Hugging Face tokenizer; `render` writes a chat as the model's own template does."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens that the text does not spell out."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids)))

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return self._tokenizer.chat_template is not None

    @property
    def start(self) -> list[int]:
        """What the tokenizer puts before every text, as the model was trained: usually nothing, or one token."""
        ids = list(self._tokenizer("")["input_ids"])
        return ids[:-1] if ids and ids[-1] == self._tokenizer.eos_token_id else ids

    @property
    def end(self) -> str:
        """The text of the token that ends a text; "" without one."""
        return str(self._tokenizer.eos_token or "")

    def render(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, **options: Any) -> str | None:
        """The chat as text; None where the tokenizer has no template.

        Args:
            messages: in order.
            tools: as the template wants them.
            options: for the template: `add_generation_prompt`, `enable_thinking`.

        Raises:
            ModelError: the template refuses this chat.
        """
        if self._tokenizer.chat_template is None:
            return None
        try:
            given = {"tools": list(tools) if tools else None, "tokenize": False, **options}
            return str(self._tokenizer.apply_chat_template(list(messages), **given))
        except TEMPLATE_FAILURES as error:
            raise ModelError(f"the chat template refuses a chat: {error}") from error


def has_tokenizer(path: Path) -> bool:
    """Whether the directory holds a tokenizer."""
    return any((path / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(path: Path) -> ChatTokenizer:
    """The tokenizer of a model directory.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    if not has_tokenizer(path):
        raise ModelError(
            f"{path}: no tokenizer ({', '.join(TOKENIZER_FILES[:2])}) beside the weights; copy the model's files there."
        )
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch
    from transformers import AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)  # rows are cut to length: its length warning is noise
    try:
        return ChatTokenizer(AutoTokenizer.from_pretrained(str(path), local_files_only=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: the tokenizer cannot be read ({error}); download its files again.") from error


def prompt_text(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    thinking: bool | None = None,
    open_reply: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A conversation as the model's template writes it.

    Args:
        tokenizer: as `optiq.models.load.load` gives it.
        messages: `{"role", "content"}` in order.
        thinking: the template's `enable_thinking`; None leaves the template its own default.
        open_reply: end with the beginning of the assistant's turn.
        tools: those that the model may call, as in the OpenAI API.

    Raises:
        InputError: the model has no template.
        ModelError: the template refuses this conversation.
    """
    if not tokenizer.has_chat_template:
        raise InputError("this model has no chat template; use --raw to continue the text as it stands")
    options: dict[str, Any] = {"add_generation_prompt": open_reply, "tokenize": False}
    if tools:
        options["tools"] = [dict(tool) for tool in tools]
    renderer = tokenizer
    if thinking is not None:
        options["enable_thinking"] = thinking
    elif tokenizer._chat_template is None:
        renderer = tokenizer._tokenizer  # mlx-lm's wrapper switches thinking on wherever the vocabulary knows it
    try:
        return str(renderer.apply_chat_template([dict(message) for message in messages], **options))
    except TEMPLATE_FAILURES as error:
        raise ModelError(f"the chat template refuses this conversation: {error}") from error
