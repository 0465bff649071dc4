"""Decoding with guesses: a drafter guesses some tokens, one forward pass of the model checks them all.

    guesses g_1 .. g_d;   one pass over (last, g_1 .. g_d);   x_i drawn from the logits after (last, g_1 .. g_{i-1})
    kept: x_1 .. x_n, with n the first place where x_n is not g_n, at most d + 1

Every x is drawn by the sequence's own sampler, in the order and with the random numbers of decoding without guesses. So the
text is the same, token for token, greedy or sampled, whatever the drafter guesses and however deep: the settings, penalties and
the seed decide it, and the machine's speed, which decides the depth, does not. This is rejection sampling of a proposal by the
target's own draw: a guess g is kept with the probability that the target gives it, as in Leviathan et al. 2023 (arXiv
2211.17192) and Chen et al. 2023 (arXiv 2302.01318) for a drafter that proposes g for certain. The drafter draws with a copy of
the sampler, so with the same random numbers, which lets guesses meet draws as often as two distributions that share them can
(Daliri, Musco and Suresh 2024, arXiv 2408.07978). The condition: a forward pass of few rows has the bits of single rows.

Knows the caches only through `models.rollback`. Where a layer cannot go half way back, what was kept is read again with
the next guesses.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from optiq.generate.decode import Context, Speculated
from optiq.generate.depth import Acceptance, Depth
from optiq.generate.sampler import Sampler
from optiq.kernels.fused import FEW_ROWS
from optiq.models.rollback import lookahead


@dataclass
class _Found:
    """What one step found: the draws that count, and how many of its guesses were right."""

    draws: list[int]
    kept: int


class Speculation:
    """Guesses and checks for one sequence.

    Args:
        context: the model with its drafter.
        depth: how many guesses a step has.
    """

    def __init__(self, context: Context, depth: Depth) -> None:
        assert context.drafter is not None
        self._context, self._drafter, self._depth = context, context.drafter, depth
        self._acceptance = Acceptance()
        self._unread: list[int] = []  # tokens that the caches have not seen, the newest drawn token last
        self.told = Speculated()

    def steps(self, last: int, sampler: Sampler, most: int, stops: Collection[int] = ()) -> Generator[int, None, None]:
        """Token ids drawn after `last`, as `Context.steps` gives them.

        Args:
            last: the final token of the prompt, which the caches have not seen yet.
            sampler: draws; its state moves on with the tokens that are given.
            most: at most so many tokens.
            stops: nothing is read after one of these.
        """
        self._unread, given = [last], 0
        while given < most:
            depth, count = self._depth.choose([self._acceptance])
            longest = min(FEW_ROWS, lookahead(self._context.caches))
            depth = min(depth, most - given - 1, longest - len(self._unread))
            if depth > 0:
                start = time.perf_counter()
                found = self._look(depth, sampler, stops)
                self._acceptance.add(depth, found.kept)
                self._depth.took(depth, time.perf_counter() - start)
                yield from found.draws
                given += len(found.draws)
                continue
            for token in self._plain(sampler, min(count, most - given)):
                yield token
                given += 1

    def _plain(self, sampler: Sampler, count: int) -> Generator[int, None, None]:
        """Some tokens without guesses."""
        context = self._context
        context.read(self._unread[:-1], watched=False)
        steps = context.steps(self._unread[-1], sampler, count)
        try:
            start = time.perf_counter()
            for token in steps:
                now = time.perf_counter()
                self._depth.took(0, now - start)
                start = now
                self._unread = [token]
                self.told.forwards += 1
                yield token
        finally:
            steps.close()

    def _look(self, depth: int, sampler: Sampler, stops: Collection[int]) -> _Found:
        """One step with guesses."""
        old = len(self._unread) - 1  # tokens that are read a second time
        last = mx.array(self._unread)
        proposed = sampler.copy()
        guesses = self._drafter.draft([self._drafter], last[old:], depth, lambda logits: proposed(logits[0]))[0]
        mx.async_eval(guesses)  # computed while the pass that checks them is put together
        tokens = mx.concatenate([last, guesses.astype(last.dtype)])
        with self._context.looking(tokens.size) as step:
            hidden = self._context.halves.body(tokens[None], self._context.caches)
            mx.async_eval(hidden)
            logits = self._context.halves.head(hidden[:, old:])[0]
            draws = [sampler(logits[row]) for row in range(depth + 1)]
            found = mx.concatenate([guesses, *draws]).tolist()
            kept, drawn = agreed(found[:depth], found[depth:], stops)
            sampler.rollback(len(draws) - len(drawn))
            fresh = [*self._unread[old:], *drawn[:-1]]
            self._drafter.seen(tokens[old : old + len(fresh)], hidden[:, old : old + len(fresh)])
            if step.accept(old + len(fresh)):
                self._context.tokens += [*self._unread[:old], *fresh]
                self._unread = [drawn[-1]]
            else:
                self._unread += drawn
        self.told.forwards += 1
        self.told.drafted += depth
        self.told.accepted += kept
        return _Found(drawn, kept)


def agreed(guesses: Sequence[int], draws: Sequence[int], stops: Collection[int] = ()) -> tuple[int, list[int]]:
    """How many guesses were right, and the draws that count: up to the first other one, or a stop."""
    kept = 0
    while kept < min(len(guesses), len(draws)) and guesses[kept] == draws[kept]:
        kept += 1
        if draws[kept - 1] in stops:
            return kept, list(draws[:kept])
    return kept, list(draws[: kept + 1])
