"""Guesses in the steps of an engine: how many for each row, made for all rows together, under the masks of their grammars.

A step reads the newest token of each row and what was guessed after it, and draws at every place as decoding without guesses
would (`generate.speculative` says why that changes no text). The depth follows what was accepted, which is known per row, and
what steps took, which is known per number of rows: where many rows fill a step, wider ones cost more and guessing ends.

Knows rows by their jobs; knows no model and no caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from optiq.errors import OptiqError
from optiq.generate.depth import MOST, Acceptance, Depth
from optiq.generate.drafter import Drafter
from optiq.generate.sampler import Mask, draw_rows
from optiq.kernels.fused import FEW_ROWS
from optiq.serve.grammar import State
from optiq.serve.job import Job
from optiq.serve.request import Request


@dataclass
class Draft:
    """What a step looks at beside the newest tokens.

    Args:
        depths: guesses of each row.
        tokens: [B, max(depths)] int32; what a row has not asked for is padding. None where nobody guesses.
        masks: by row, what a grammar allows at each place that is to be drawn, as far as that is known already.
    """

    depths: list[int]
    tokens: mx.array | None = None
    masks: dict[int, list[Mask]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens that the step reads of each row."""
        return 1 + max(self.depths)

    def places(self, row: int) -> int:
        """How many tokens of a row are to be drawn: one behind each guess that goes on, and the first."""
        return len(self.masks[row]) if row in self.masks else 1 + self.depths[row]


@dataclass
class _Pace:
    """The depth for one number of rows, and how many steps without guesses are left until it is chosen again."""

    depth: Depth
    pause: int = 0


class Drafts:
    """The guesses of one engine.

    Args:
        follow: makes a drafter for a new request (`generate.drafter.load_drafters`); None: nobody guesses.
        most: at most so many guesses per row and step.
        fixed: always so many, as far as a step has room for them.
    """

    def __init__(self, follow: Callable[[], Drafter] | None = None, most: int = MOST, fixed: bool = False) -> None:
        self._follow, self._most, self._fixed = follow, most, fixed
        self._usual = Acceptance()  # of all rows
        self._paces: dict[int, _Pace] = {}
        self.token_bytes = 0.0 if follow is None else follow().token_bytes

    def wanted(self, request: Request) -> bool:
        """Whether there will be guesses for a request."""
        return self._follow is not None and request.draft

    def begin(self, job: Job) -> None:
        """A request begins; it gets a drafter if it wants one."""
        if self._follow is not None and self.wanted(job.request):
            job.drafter, job.acceptance = self._follow(), Acceptance(self._usual)

    def draft(self, jobs: Sequence[Job], lookahead: Callable[[], Sequence[int]]) -> Draft:
        """Guesses for one step, lazily as far as no grammar has to see them.

        Args:
            jobs: the rows of the step.
            lookahead: how many tokens of a longer step may stay, per row; 0: there can be none. Asked where somebody could guess.
        """
        if not any(job.drafter is not None for job in jobs):
            return Draft([0] * len(jobs))
        depths = self._depths(jobs, lookahead())
        rows = [row for row, depth in enumerate(depths) if depth]
        drafters = [drafter for row in rows if (drafter := jobs[row].drafter) is not None]
        if not drafters:
            return Draft(depths)
        samplers = [jobs[row].sampler.copy() for row in rows]
        walks = [_Walk(jobs[row].grammar, depths[row], drafters[0].vocabulary) for row in rows]

        def draw(logits: mx.array) -> mx.array:
            drawn = draw_rows(samplers, logits, [walk.mask for walk in walks])
            for place, walk in enumerate(walks):
                if walk.mask is not None:
                    walk.take(int(drawn[place].item()))  # type: ignore[arg-type]
            return drawn

        last = mx.array([jobs[row].last for row in rows])
        try:
            guesses = type(drafters[0]).draft(drafters, last, max(depths), draw)
        finally:
            for walk in walks:
                walk.back()
        draft = Draft(depths)
        for row, walk in zip(rows, walks, strict=True):
            if jobs[row].grammar is not None:
                depths[row] = walk.depth
            if walk.masks:
                draft.masks[row] = walk.masks
        if longest := max(depths):
            draft.tokens = mx.zeros((len(jobs), longest), mx.int32)
            draft.tokens[mx.array(rows)] = guesses[:, :longest].astype(mx.int32)
        return draft

    def took(self, depths: Sequence[int], accepted: Sequence[int], seconds: float) -> None:
        """A step took so long.

        Args:
            depths: guesses of each row.
            accepted: how many of them were right.
        """
        for own, right in zip(depths, accepted, strict=True):
            if own:
                self._usual.add(own, right)
        depth, pace = max(depths), self._paces.get(len(depths))
        if pace is not None:
            pace.depth.took(depth, seconds)
            pace.pause = max(0, pace.pause - (depth == 0))

    def _depths(self, jobs: Sequence[Job], lookahead: Sequence[int]) -> list[int]:
        most = [
            min(job.left, ahead) - 1 if job.drafter is not None and job.drafter.ready else 0
            for job, ahead in zip(jobs, lookahead, strict=True)
        ]
        rows = [job.acceptance for job, limit in zip(jobs, most, strict=True) if limit > 0]
        width = min(self._most, FEW_ROWS // len(jobs) - 1)  # more rows in a step would not have the bits of single ones
        if not rows or width <= 0 or min(lookahead) < 1:
            return [0] * len(jobs)
        pace = self._paces.setdefault(len(jobs), _Pace(Depth(width, self._fixed)))
        depth = 0
        if not pace.pause:
            depth, pace.pause = pace.depth.choose(rows, len(jobs) - len(rows))
            pace.pause = 0 if depth else pace.pause
        return [max(0, min(depth, limit)) for limit in most]


class _Walk:
    """A grammar that goes along with the guesses of one row, and back.

    Args:
        grammar: of the row; None where it has none.
        depth: guesses that the row has asked for.
        vocabulary: token ids that can be guessed.
    """

    def __init__(self, grammar: State | None, depth: int, vocabulary: int) -> None:
        self._grammar, self._asked, self._vocabulary = grammar, depth, vocabulary
        self.masks: list[Mask] = []
        self.depth = 0
        self.mask: Mask | None = None  # for the next guess; None: any token
        self._look()

    def take(self, token: int) -> None:
        """The next guess is this one."""
        assert self._grammar is not None
        self.mask = None
        if self.depth < self._asked and self._grammar.accepted([token]):
            self._grammar.advance(token)
            self.depth += 1
            self._look()

    def back(self) -> None:
        """Take all guesses back."""
        if self._grammar is not None:
            self._grammar.rollback(self.depth)

    def _look(self) -> None:
        """Note what may come behind the guesses so far, unless they have ended the reply."""
        if self._grammar is None or self._grammar.finished:
            return
        try:
            mask = self._grammar.mask()
        except OptiqError:
            return  # the row that draws here will say so
        self.masks.append(mask)
        if mask[: self._vocabulary].any():
            self.mask = mask
