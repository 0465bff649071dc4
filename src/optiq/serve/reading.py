"""A prompt read chunk by chunk, each chunk in slices of time with other work in between. Owns a request's caches meanwhile.

Chunks begin at multiples of `GRID` whoever reads and wherever it began, and end at such multiples but for the last one, so that a
prefix has the same numbers however it came about.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import mlx.core as mx

from optiq.generate.drafter import Drafter
from optiq.generate.logprobs import log_probabilities
from optiq.models.caches import Caches, evaluate
from optiq.models.forward import Halves
from optiq.models.marks import marks
from optiq.serve.request import Logprob, Scored
from optiq.serve.scheduler import GRID


class Chunk:
    """Tokens on their way through the model.

    Args:
        halves: of a model that is watched (`optiq.models.marks.watch`).
        tokens: ids that follow on what the caches have seen.
        caches: moved on at once, lazily.
        adapted: a context in which the model uses the request's adapter.
        drafter: is told at the end; None for nobody.
        scored: `scored` will be asked for; logits are V wide, so such chunks are short.
    """

    def __init__(
        self,
        halves: Halves,
        tokens: Sequence[int],
        caches: Caches,
        adapted: AbstractContextManager[None],
        drafter: Drafter | None = None,
        scored: bool = False,
    ) -> None:
        self.size = len(tokens)
        self.seconds = 0.0
        self._tokens = mx.array(list(tokens))
        with adapted, marks() as found:
            self._hidden = halves.body(self._tokens[None], caches)
            self._logits = halves.head(self._hidden) if scored else None
        self._left = found[::-1]
        self._caches, self._drafter = caches, drafter

    def advance(self, slice_s: float | None) -> bool:
        """Compute for about so many seconds, one block at least; whether the chunk is done."""
        start = time.perf_counter()
        longest = 0.0
        while self._left:
            begin = time.perf_counter()
            mx.eval(self._left.pop())
            now = time.perf_counter()
            longest = max(longest, now - begin)
            if slice_s is not None and now - start + longest / 2 > slice_s and self._left:
                self.seconds += now - start
                return False
        evaluate(self._caches)
        if self._drafter is not None:
            self._drafter.seen(self._tokens, self._hidden)
        self.seconds += time.perf_counter() - start
        return True

    def scored(self, following: Sequence[int], top: int) -> tuple[Scored, ...]:
        """What the model thought of the tokens that follow on each of the chunk's.

        Args:
            following: as many ids as the chunk has tokens.
            top: how many alternatives to tell.
        """
        assert self._logits is not None
        logits = self._logits[0]
        found = log_probabilities(logits, following, [min(top, logits.shape[-1])] * len(following))
        return tuple(
            Scored(token, one.chosen, tuple(Logprob(int(i), float(v)) for i, v in zip(one.ids, one.values, strict=True)))
            for token, one in zip(following, found, strict=True)
        )


def plan_cuts(length: int, wanted: Sequence[int], every: int) -> list[int]:
    """Lengths on the grid at which a prompt of `length` tokens is worth a checkpoint, rising.

    The last token is left for the first decoding step. Each wanted cut counts with the grid point before it, and so does the end.

    Args:
        length: tokens of the prompt.
        wanted: beginnings that later prompts will share.
        every: a checkpoint at least once in so many tokens; 0 for none.
    """
    end = length - 1
    cuts = {min(cut, end) // GRID * GRID for cut in wanted if cut > 0} | {end // GRID * GRID}
    if every:
        step = max(GRID, every // GRID * GRID)
        cuts |= set(range(step, end, step))
    return sorted(cut for cut in cuts if cut > 0)


def next_stop(at: int, length: int, cuts: Sequence[int], chunk: int) -> int:
    """Where the chunk that begins at `at` ends: at the next cut, after `chunk` tokens, or before the prompt's last token."""
    end = length - 1
    stop = min(end, at + chunk)
    return next((cut for cut in cuts if at < cut < stop), stop)
