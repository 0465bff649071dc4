"""Tokens for the rows of one step from its logits: under their grammars, guesses verified, what was drawn in vain taken back.

Data in: jobs, logits, the draft that the step looked at. Data out: the tokens of each row that count. Knows no caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from optiq.generate.logprobs import log_probabilities
from optiq.generate.sampler import draw_rows
from optiq.generate.speculative import agreed
from optiq.serve.drafting import Draft
from optiq.serve.job import Job
from optiq.serve.request import Logprob


@dataclass(frozen=True)
class Drawn:
    """What a step gave a row: tokens, at least one, and how many of its guesses were right."""

    ids: list[int]
    accepted: int


def draw(jobs: Sequence[Job], logits: mx.array, draft: Draft) -> list[Drawn]:
    """The tokens of each row that count; masks are made while the logits are computed.

    A row whose grammar fails draws without it and says so in `Job.failure`.

    Args:
        jobs: the rows.
        logits: [B, L, V].
        draft: what the step looked at.
    """
    mx.async_eval(logits)  # type: ignore[no-untyped-call]
    masks = [draft.masks[row] if row in draft.masks else [job.mask()] for row, job in enumerate(jobs)]
    counts = [draft.places(row) for row in range(len(jobs))]
    parts, owners = [], []
    for place in range(max(counts)):
        rows = [row for row, count in enumerate(counts) if place < count]
        x = logits[:, place] if len(rows) == len(jobs) else logits[mx.array(rows), place]
        allowed = [None if jobs[row].grammar is None else masks[row][place] for row in rows]
        parts.append(draw_rows([jobs[row].sampler for row in rows], x, allowed))
        owners += rows
    drawn: list[list[int]] = [[] for _ in jobs]
    found: list[int] = mx.concatenate(parts).tolist()  # type: ignore[assignment]
    for row, token in zip(owners, found, strict=True):
        drawn[row].append(token)
    guesses: list[list[int]] = [[] for _ in jobs] if draft.tokens is None else draft.tokens.tolist()  # type: ignore[assignment]
    results = []
    for job, own, guessed, depth in zip(jobs, drawn, guesses, draft.depths, strict=True):
        accepted, ids = agreed(guessed[:depth], own)
        job.sampler.rollback(len(own) - len(ids))
        results.append(Drawn(ids, accepted))
    return results


def logprobs(
    jobs: Sequence[Job], logits: mx.array, drawn: Sequence[Drawn]
) -> dict[tuple[int, int], tuple[float, tuple[Logprob, ...]]]:
    """Log probabilities of drawn tokens and of the likeliest ones, by row and place, of those rows that asked.

    Args:
        jobs, logits: as `draw`.
        drawn: what it gave.
    """
    asking = [
        (row, place) for row, job in enumerate(jobs) if job.request.logprobs is not None for place in range(len(drawn[row].ids))
    ]
    if not asking:
        return {}
    rows, places = (mx.array(side) for side in zip(*asking, strict=True))
    tops = [min(jobs[row].request.logprobs or 0, logits.shape[-1]) for row, _ in asking]
    found = log_probabilities(logits[rows, places], [drawn[row].ids[place] for row, place in asking], tops)
    return {
        at: (one.chosen, tuple(Logprob(int(i), float(v)) for i, v in zip(one.ids, one.values, strict=True)))
        for at, one in zip(asking, found, strict=True)
    }
