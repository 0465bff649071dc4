"""The true divergence between two models: KL(reference || candidate) per token over the whole vocabulary, in nats.

    KL_t = sum_v p_t(v) (log p_t(v) - log q_t(v))

Both models are walked block by block in float32 with dense weights, so that what is compared are the stored values and not one
machine's quantized arithmetic, and a model need not fit in memory. Only the hidden states after the last block are kept.

Shapes: tokens [N, L] give KL [N, L] and top-1 agreement [N, L]. Intervals are bootstrapped over rows (documents).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np

from optiq.events import QUIET, Events
from optiq.kernels import loss
from optiq.measure import walk
from optiq.measure.hidden import HiddenStore
from optiq.measure.tokens import Tokens
from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream

RESAMPLES = 2000


@dataclass(frozen=True)
class Divergence:
    """Per-token results: `kl` [N, L] in nats, `same` [N, L] whether both models' likeliest tokens agree, row domains."""

    kl: np.ndarray
    same: np.ndarray
    domains: tuple[str, ...]

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
    """
    with TemporaryDirectory() as scratch:
        first, second = _stream(reference), _stream(candidate)
        kept = HiddenStore((work or Path(scratch)) / f"reference-{tokens.sha256[:16]}")
        walk.forward(first, tokens.ids, kept, events, keep=False, label=f"reference on {tokens.set_name}")
        store = HiddenStore(Path(scratch) / "candidate")
        walk.forward(second, tokens.ids, store, events, keep=False, label=f"candidate on {tokens.set_name}")
        return _compare(first, kept, second, store, tokens)


def interval(per_row: np.ndarray, resamples: int = RESAMPLES) -> list[float]:
    """95 % percentile bootstrap interval of the mean over rows; fixed seed."""
    picks = np.random.default_rng(0).integers(0, len(per_row), (resamples, len(per_row)))
    return [float(x) for x in np.percentile(per_row[picks].mean(1), [2.5, 97.5])]


def ratio_interval(ours: np.ndarray, theirs: np.ndarray, resamples: int = RESAMPLES) -> list[float]:
    """95 % paired bootstrap interval of mean(ours) / mean(theirs) over rows; fixed seed."""
    picks = np.random.default_rng(0).integers(0, len(ours), (resamples, len(ours)))
    ratios = ours[picks].mean(1) / theirs[picks].mean(1)
    return [float(x) for x in np.percentile(ratios, [2.5, 97.5])]


def kl(reference: mx.array, candidate: mx.array) -> tuple[mx.array, mx.array]:
    """KL [B, L] and top-1 agreement [B, L] of two arrays of logits [B, L, V]."""
    return loss.divergence(reference, candidate), reference.argmax(-1) == candidate.argmax(-1)


def _compare(first: Stream, kept: HiddenStore, second: Stream, store: HiddenStore, tokens: Tokens) -> Divergence:
    ids = tokens.ids
    found, same = np.zeros(ids.shape, np.float64), np.zeros(ids.shape, bool)
    for a, b, left, right in walk.slices(first, ids, walk.vocabulary_size(first)):
        part = mx.array(ids[a:b, left:right])
        logits = [
            stream.tail(hidden.rows(str(stream.depth), a, b)[:, left:right], part)
            for stream, hidden in ((first, kept), (second, store))
        ]
        value, agree = kl(*logits)
        mx.eval(value, agree)
        found[a:b, left:right], same[a:b, left:right] = np.array(value), np.array(agree)
    return Divergence(np.maximum(found, 0.0), same, tokens.domains)


def _stream(model: Path | Checkpoint | Stream) -> Stream:
    if isinstance(model, Stream):
        return model
    return Stream(model if isinstance(model, Checkpoint) else Checkpoint.open(Path(model)))
