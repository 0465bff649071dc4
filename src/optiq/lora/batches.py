"""Samples as batches: side by side in one row, or below each other with padding; which of them make a step.

    packed     tokens [1, L], L the tokens of all samples together; nothing of one reaches another (`optiq.models.segments`)
    padded     tokens [B, L], L the longest sample; padding stands behind, where causal models do not see it

Data in: `Sample`s. Data out: `Batch`es, and groups of samples as a function of seed and epoch alone, for resuming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from optiq.lora.data import Sample

WINDOW = 16  # batches among which samples of like length are put together


@dataclass(frozen=True)
class Batch:
    """What one forward sees.

    Args:
        tokens: [B, L] int32, inputs.
        lengths: of the texts in the one row; None where a row is one text.
        positions: [M] int32, flat in [B L], where a token that carries loss is predicted.
        targets: [M] int32, those tokens.
        owners: [M] int32, the sample of each.
        samples: in order.
    """

    tokens: mx.array
    lengths: tuple[int, ...] | None
    positions: mx.array
    targets: mx.array
    owners: mx.array
    samples: tuple[Sample, ...]

    @property
    def places(self) -> str:
        """Where the samples stand, for messages."""
        return ", ".join(dict.fromkeys(sample.place for sample in self.samples))


def collate(samples: Sequence[Sample], packing: bool) -> Batch:
    """One batch.

    Args:
        samples: each of at least 2 tokens.
        packing: side by side instead of below each other.
    """
    lengths = [len(sample.tokens) - 1 for sample in samples]  # the last token is predicted alone
    width = sum(lengths) if packing else max(lengths)
    tokens = np.zeros((1 if packing else len(samples), width), np.int32)
    flat, at = tokens.reshape(-1), 0
    positions, targets, owners = [], [], []
    for index, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        start = at if packing else index * width
        flat[start : start + length] = sample.tokens[:-1]
        carrying = np.flatnonzero(np.array(sample.loss[1:]))
        positions.append(start + carrying)
        targets.append(np.array(sample.tokens[1:])[carrying])
        owners.append(np.full(len(carrying), index))
        at += length
    where, what, whose = (mx.array(np.concatenate(found).astype(np.int32)) for found in (positions, targets, owners))
    return Batch(mx.array(tokens), tuple(lengths) if packing else None, where, what, whose, tuple(samples))


def groups(lengths: Sequence[int], size: int, room: int, packing: bool, seed: int) -> list[tuple[int, ...]]:
    """Which samples make a batch.

    Args:
        lengths: tokens of each sample.
        size: most samples of a padded batch.
        room: most tokens of a packed one.
        packing: see `collate`.
        seed: of the order in which samples are taken.

    Returns:
        Indices of samples, each once.
    """
    order = np.random.default_rng(seed).permutation(len(lengths)).tolist()
    if packing:
        return _packed(order, lengths, room)
    found = []
    for start in range(0, len(order), size * WINDOW):
        window = sorted(order[start : start + size * WINDOW], key=lambda index: lengths[index])
        found += [tuple(window[at : at + size]) for at in range(0, len(window), size)]
    return found


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of the groups in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count).tolist()  # type: ignore[no-any-return]


def _packed(order: Sequence[int], lengths: Sequence[int], room: int) -> list[tuple[int, ...]]:
    """First fit: each sample goes to the first batch of the last few that still has room for it."""
    done: list[tuple[int, ...]] = []
    open_: list[tuple[int, list[int]]] = []
    for index in order:
        length = lengths[index]
        place = next((i for i, (used, _) in enumerate(open_) if used + length <= room), None)
        if place is not None:
            used, members = open_[place]
            open_[place] = used + length, [*members, index]
            continue
        if len(open_) == WINDOW:
            done.append(tuple(open_.pop(0)[1]))
        open_.append((length, [index]))
    return done + [tuple(members) for _, members in open_]
