"""How far a model is from the true one on held-out text: KL by domain, short and long, and the perplexity of both.

The text is the packaged *score* set, which no choice of a conversion has looked at. Both models are walked block by block in
float32 with their stored values (`optiq.measure.divergence`), so the figure is of the model and not of a machine's kernels.

    perplexity = exp(mean over tokens of -log p(token | those before it))
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from optiq.errors import InputError
from optiq.events import QUIET, Events
from optiq.measure import divergence, text
from optiq.measure.tokens import Tokens, tokenise
from optiq.models.chat import load_tokenizer
from optiq.models.generation import context_length

SHORT, LONG = 512, 2048


def score_text(model: Path, length: int, rows: int) -> Tokens:
    """The *score* set as token rows of a model's tokenizer.

    Args:
        model: directory with the tokenizer.
        length: tokens per row.
        rows: per domain, at most.

    Raises:
        InputError: the set has not one row of this length.
    """
    return tokenise(text.samples("score"), load_tokenizer(model), length, rows, "score")


def measure(reference: Path, candidate: Path, rows: int, events: Events = QUIET) -> dict[str, Any]:
    """The figures of one model against the true one.

    Args:
        reference: directory of the true model (bf16).
        candidate: directory of the model; its vocabulary must be the reference's.
        rows: documents of 512 tokens per domain; a quarter of them, at least one, of 2,048 where the context allows.

    Returns:
        `kl` and `kl_long` (figures of `Divergence.summary`; `kl_long` None where no text is long enough), `perplexity`,
        `reference_perplexity`, and by domain.
    """
    short = score_text(reference, SHORT, rows)
    far = divergence.divergence(reference, candidate, short, events)
    theirs, ours = far.losses
    domains = np.array(far.domains)
    found: dict[str, Any] = {
        "kl": far.summary(),
        "kl_long": None,
        "perplexity": perplexity(ours),
        "reference_perplexity": perplexity(theirs),
        "perplexity_by_domain": {name: perplexity(ours[domains == name]) for name in dict.fromkeys(far.domains)},
    }
    context = context_length(reference)
    if context is None or context >= LONG:
        try:
            long = score_text(reference, LONG, max(1, rows // 4))
        except InputError:
            return found
        found["kl_long"] = divergence.divergence(reference, candidate, long, events).summary()
    return found


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean of losses in nats."""
    return math.exp(float(losses.mean()))
