"""How far a model is from the true one on held-out text: KL by domain, short and long, and the perplexity of both.

The text is the packaged *score* set, which no choice of a conversion has looked at. Both models are walked block by block in
float32 with their stored values (`optiq.measure.divergence`), so the figure is of the model and not of a machine's kernels.

    perplexity = exp(mean over tokens of -log p(token | those before it))
"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np

from optiq.errors import InputError
from optiq.events import QUIET, Events
from optiq.kernels import loss
from optiq.measure import divergence, text, walk
from optiq.measure.hidden import HiddenStore
from optiq.measure.tokens import Tokens, tokenise
from optiq.models.chat import load_tokenizer
from optiq.models.checkpoint import Checkpoint
from optiq.models.generation import context_length
from optiq.models.stream import Stream

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
    found: dict[str, Any] = {"kl": divergence.divergence(reference, candidate, short, events).summary(), "kl_long": None}
    losses = {name: nll(path, short, events) for name, path in (("candidate", candidate), ("reference", reference))}
    found["perplexity"] = perplexity(losses["candidate"])
    found["reference_perplexity"] = perplexity(losses["reference"])
    domains = np.array(short.domains)
    found["perplexity_by_domain"] = {
        name: perplexity(losses["candidate"][domains == name]) for name in dict.fromkeys(short.domains)
    }
    context = context_length(reference)
    if context is None or context >= LONG:
        try:
            long = score_text(reference, LONG, max(1, rows // 4))
        except InputError:
            return found
        found["kl_long"] = divergence.divergence(reference, candidate, long, events).summary()
    return found


def nll(model: Path, tokens: Tokens, events: Events = QUIET) -> np.ndarray:
    """Negative log-likelihood in nats of every token but the first of each row, [N, L - 1]."""
    stream, ids = Stream(Checkpoint.open(model)), tokens.ids
    found = np.zeros((len(ids), ids.shape[1] - 1))
    with TemporaryDirectory() as scratch:
        store = HiddenStore(Path(scratch))
        walk.forward(stream, ids, store, events, keep=False, label=f"perplexity on {tokens.set_name}")
        for a, b, left, right in walk.slices(stream, ids, walk.vocabulary_size(stream)):
            right = min(right, ids.shape[1] - 1)
            if left >= right:
                continue
            hidden = store.rows(str(stream.depth), a, b)[:, left:right]
            logits = stream.tail(hidden, mx.array(ids[a:b, left:right]))
            found[a:b, left:right] = np.array(loss.cross_entropy(logits, mx.array(ids[a:b, left + 1 : right + 1])))
    return found


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean of losses in nats."""
    return math.exp(float(losses.mean()))
