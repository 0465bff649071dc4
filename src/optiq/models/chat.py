"""Tokenizers and chat templates of a checkpoint, behind the small face that the measuring code needs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optiq.errors import ModelError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json")


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

    def render(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None) -> str | None:
        """The chat as text; None where the tokenizer has no template.

        Raises:
            ModelError: the template refuses this chat.
        """
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            return None
        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tools=list(tools) if tools else None, tokenize=False))
        except (TemplateError, TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
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
    from transformers import AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)  # rows are cut to length: its length warning is noise
    try:
        return ChatTokenizer(AutoTokenizer.from_pretrained(str(path), local_files_only=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: the tokenizer cannot be read ({error}); download its files again.") from error
