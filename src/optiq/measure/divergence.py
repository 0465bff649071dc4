"""The true divergence between two models: KL(reference || candidate) per token over the whole vocabulary, in nats.

    KL_t = sum_v p_t(v) (log p_t(v) - log q_t(v))

With it come what both models think likeliest and what the text's own next token costs each, -log p_t(next).

Both models are walked block by block in float32 with dense weights, so that what is compared are the stored values and not one
machine's quantized arithmetic, and a model need not fit in memory. Only the hidden states after the last block are kept, and
what lies outside the blocks of both models is in memory together only while logits are compared.

Shapes: tokens [N, L] give KL [N, L], likeliest tokens [N, L], losses [N, L - 1]. Intervals are bootstraps over rows (documents).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np

from optiq.errors import InputError
from optiq.events import QUIET, Events
from optiq.kernels import loss
from optiq.measure import walk
from optiq.measure.bootstrap import interval
from optiq.measure.hidden import HiddenStore
from optiq.measure.tokens import Tokens
from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream


@dataclass(frozen=True)
class Divergence:
    """Per-token results.

    Args:
        kl: [N, L] in nats.
        tops: likeliest tokens of the reference and of the candidate, each [N, L] int32.
        losses: -log of what each of them gives the next token of the text, each [N, L - 1] in nats.
        domains: of the rows.
    """

    kl: np.ndarray
    tops: tuple[np.ndarray, np.ndarray]
    losses: tuple[np.ndarray, np.ndarray]
    domains: tuple[str, ...]

    @property
    def same(self) -> np.ndarray:
        """Whether both models' likeliest tokens agree, [N, L]."""
        return np.equal(*self.tops)

    @property
    def mean(self) -> float:
        """Mean KL in nats per token."""
        return float(self.kl.mean())

    def summary(self) -> dict[str, object]:
        """The figures of a report: mean, median, p95, p99, top-1, 95 % interval of the mean, mean by domain."""
        domains = np.array(self.domains)
        return {
            "documents": len(self.kl),
            "tokens": int(self.kl.size),
            "mean": self.mean,
            "median": float(np.median(self.kl)),
            "p95": float(np.percentile(self.kl, 95)),
            "p99": float(np.percentile(self.kl, 99)),
            "top1": float(self.same.mean()),
            "ci95": interval(self.kl.mean(1)),
            "by_domain": {name: float(self.kl[domains == name].mean()) for name in dict.fromkeys(self.domains)},
        }


def divergence(
    reference: Path | Checkpoint | Stream,
    candidate: Path | Checkpoint | Stream,
    tokens: Tokens,
    events: Events = QUIET,
    work: Path | None = None,
) -> Divergence:
    """Measure one candidate against a reference.

    Args:
        reference: a model directory (dense or quantized), or one already opened.
        candidate: likewise.
        tokens: the text.
        work: directory that keeps the reference's last hidden states for the next candidate; None: a temporary one.

    Raises:
        InputError: the models have different vocabularies.
    """
    with TemporaryDirectory() as scratch:
        first, second = _stream(reference), _stream(candidate)
        _check(first, second)
        kept = HiddenStore((work or Path(scratch)) / f"reference-{tokens.sha256[:16]}")
        walk.forward(first, tokens.ids, kept, events, keep=False, label=f"reference on {tokens.set_name}")
        first.load_outer()
        store = HiddenStore(Path(scratch) / "candidate")
        walk.forward(second, tokens.ids, store, events, keep=False, label=f"candidate on {tokens.set_name}")
        return _compare(first, kept, second, store, tokens)


def kl(reference: mx.array, candidate: mx.array) -> tuple[mx.array, mx.array]:
    """KL [B, L] and top-1 agreement [B, L] of two arrays of logits [B, L, V]."""
    return loss.divergence(reference, candidate), reference.argmax(-1) == candidate.argmax(-1)


def _compare(first: Stream, kept: HiddenStore, second: Stream, store: HiddenStore, tokens: Tokens) -> Divergence:
    ids, sides = tokens.ids, ((first, kept), (second, store))
    found = np.zeros(ids.shape, np.float64)
    tops = (np.zeros(ids.shape, np.int32), np.zeros(ids.shape, np.int32))
    losses = (np.zeros(ids.shape, np.float32), np.zeros(ids.shape, np.float32))
    following = np.concatenate([ids[:, 1:], ids[:, :1]], axis=1)  # what follows the last token is not known; dropped below
    for a, b, left, right in walk.slices(first, ids, walk.vocabulary_size(first)):
        at = slice(a, b), slice(left, right)
        part, targets = mx.array(ids[at]), mx.array(following[at])
        logits = [stream.tail(hidden.rows(str(stream.depth), a, b)[:, left:right], part) for stream, hidden in sides]
        found[at] = np.array(loss.divergence(*logits))
        for values, top, cost in zip(logits, tops, losses, strict=True):
            top[at], cost[at] = np.array(values.argmax(-1)), np.array(loss.cross_entropy(values, targets))
    return Divergence(np.maximum(found, 0.0), tops, (losses[0][:, :-1], losses[1][:, :-1]), tokens.domains)


def _check(first: Stream, second: Stream) -> None:
    ours, theirs = walk.vocabulary_size(second), walk.vocabulary_size(first)
    if ours != theirs:
        raise InputError(
            f"the vocabulary of {second.checkpoint.path} has {ours} tokens and that of {first.checkpoint.path} {theirs}; "
            "a divergence is between models of one vocabulary"
        )


def _stream(model: Path | Checkpoint | Stream) -> Stream:
    if isinstance(model, Stream):
        return model
    return Stream(model if isinstance(model, Checkpoint) else Checkpoint.open(Path(model)))
