"""What single tokens are as text and bytes, for log probabilities. Knows tokenizers, no protocol."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

from llguidance import LLTokenizer

from optiq.serve.request import Logprob, Token

LEAST = -9999.0  # what OpenAI's API tells of a probability of 0, for JSON knows no infinity


class TokenTexts:
    """The tokens of one model; costs about a second for a vocabulary of 250,000.

    Args:
        tokenizer: as `optiq.models.load.load` gives it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._table: LLTokenizer | None = None
        if hasattr(tokenizer, "backend_tokenizer"):
            backend = copy.copy(tokenizer.backend_tokenizer)
            backend.no_padding()
            backend.no_truncation()
            self._table = LLTokenizer(backend.to_str())

    def bytes_of(self, token: int) -> bytes:
        """The token's own bytes, perhaps a part of a character."""
        if self._table is not None and token < self._table.vocab_size:
            return self._table.decode_bytes([token])
        return str(self._tokenizer.decode([token])).encode("utf-8", "replace")

    def text_of(self, token: int) -> str:
        """The token's text; parts of characters are replacement signs."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def told(self, token: Token) -> dict[str, Any]:
        """A token with its alternatives, as OpenAI's chat API has them."""
        return {
            **self._one(Logprob(token.id, token.logprob or 0.0)),
            "top_logprobs": [self._one(one) for one in token.top],
        }

    def _one(self, one: Logprob) -> dict[str, Any]:
        data = self.bytes_of(one.token)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(one.logprob, LEAST), "bytes": list(data)}


@lru_cache(maxsize=8)
def token_texts(tokenizer: Any) -> TokenTexts:
    """The tokens of a model; made once."""
    return TokenTexts(tokenizer)
