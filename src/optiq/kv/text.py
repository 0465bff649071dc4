"""The text that caches are measured on: long rows of the packaged calibration text, all domains in each.

A row joins samples of the six domains in turn until it is full, so that every row has every domain and contexts are long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from optiq.errors import InputError, ModelError
from optiq.events import QUIET, Events
from optiq.measure.text import Sample, samples
from optiq.measure.tokens import Tokenizer, Tokens, tokenise
from optiq.models.chat import has_tokenizer, load_tokenizer
from optiq.models.checkpoint import Checkpoint
from optiq.models.selftext import self_text

MIXED = "mixed"
LONGEST_SELF_TEXT = 512  # tokens: a model without a tokenizer writes its rows token by token
SELF_SEEDS = {"calibration": 1, "dev": 2, "score": 3}


def rows(checkpoint: Checkpoint, length: int, count: int, set_name: str = "calibration", events: Events = QUIET) -> Tokens:
    """Up to `count` rows of `length` tokens; both less where the model or the text has less.

    Raises:
        InputError: not a row.
        ModelError: a tokenizer that cannot be read, or that is another model's.
    """
    if length < 2 or count < 1:
        raise InputError(f"{count} rows of {length} tokens say nothing; expected at least 1 row of 2 tokens")
    length = min(length, int(checkpoint.text_config.get("max_position_embeddings") or length))
    if not has_tokenizer(checkpoint.path):
        events.warn("the model has no tokenizer: the text was sampled from the model itself")
        ids = self_text(checkpoint, count, min(length, LONGEST_SELF_TEXT), SELF_SEEDS[set_name])
        digest = hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()
        return Tokens(ids, ("self",) * len(ids), tuple(f"self-{i}" for i in range(len(ids))), digest, set_name)
    found = mixed(samples(set_name), load_tokenizer(checkpoint.path), length, count, set_name)
    size, largest = checkpoint.text_config.get("vocab_size"), int(found.ids.max())
    if isinstance(size, int) and largest >= size:
        raise ModelError(
            f"{checkpoint.path}: the tokenizer gives id {largest}, the model has {size} embeddings; they do not belong together"
        )
    return found


def mixed(found: Sequence[Sample], tokenizer: Tokenizer, length: int, count: int, set_name: str) -> Tokens:
    """Rows that take samples of the domains in turn; half as long, and so on, where all of them do not fill one row."""
    by_domain: dict[str, list[Sample]] = {}
    for sample in found:
        by_domain.setdefault(sample.domain, []).append(sample)
    turns = max(map(len, by_domain.values()))
    one = [replace(group[i], domain=MIXED) for i in range(turns) for group in by_domain.values() if i < len(group)]
    while True:
        try:
            return tokenise(one, tokenizer, length, count, set_name)
        except InputError:
            if length < 32:
                raise
            length //= 2
