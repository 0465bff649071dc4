"""How many tokens to guess per step: as many as pay, from what was accepted and from what steps took. No MLX.

With a_i how often guess i of a row is accepted where those before it were, and T_d the seconds of a step with d guesses,

    tokens per second at depth d = sum over rows of (1 + a_1 + a_1 a_2 + .. + a_1 .. a_d) / T_d

and the depth with the largest is chosen. An `Acceptance` belongs to a sequence, a `Depth` to a number of sequences that run
together, for that is what T_d depends on. T_d holds all of it: guessing, the wider forward pass, taking back. Where depth 0
wins, steps without guesses run for a while, longer each time, before guesses are tried again.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST = 4  # guesses; a fifth is rarely reached
WARM = 4  # steps without guesses at the start, to know what one takes
FORGET = 3.0  # observations that what was seen before a pause counts for: one right guess is then enough to go on
NEAR, SHORT_PAUSE = 0.9, 8  # where guesses nearly pay, bad luck may have decided, and trying again costs little
FIRST_PAUSE, LONGEST_PAUSE = 48, 512  # tokens without guesses between trials
CURIOUS = 20  # steps with guesses, after which one goes a guess deeper than seems best: the deeper guess may have become good
MARGIN = 1.02  # what guessing has to gain before it is worth its noise
RATE = 1 / 32  # of the exponential averages, once so many values are known
PRIOR = (0.6, 1.5)  # of an acceptance: value, and how many observations it counts for
GUESSED_COST = 0.2  # of a step, per guess, until a step with one was timed
TIMES = 9  # of the newest times the median is taken, which a busy machine does not move
KNOWN = 3  # times before a median is believed: the first steps of a kind touch memory for the first time


@dataclass
class _Share:
    """A mean that becomes an exponential average."""

    value: float = PRIOR[0]
    weight: float = PRIOR[1]

    def add(self, x: float) -> None:
        self.weight = min(self.weight + 1, 1 / RATE)
        self.value += (x - self.value) / self.weight


class Acceptance:
    """How often the guesses for one sequence are right, by place.

    Args:
        usual: what is known of other sequences, which counts for little; None for nothing.
    """

    def __init__(self, usual: Acceptance | None = None) -> None:
        self._shares = [] if usual is None else [_Share(share.value, share.weight) for share in usual._shares]
        self.fade()

    def add(self, depth: int, accepted: int) -> None:
        """There were `depth` guesses, and so many of them, from the first on, were right."""
        while len(self._shares) < depth:
            self._shares.append(_Share(self._shares[-1].value if self._shares else PRIOR[0]))
        for place in range(min(depth, accepted + 1)):
            self._shares[place].add(float(place < accepted))

    def tokens(self, depth: int) -> float:
        """Expected tokens of a step with so many guesses."""
        tokens, chance = 1.0, 1.0
        for place in range(depth):
            known = self._shares[min(place, len(self._shares) - 1)].value if self._shares else PRIOR[0]
            chance *= known
            tokens += chance
        return tokens

    def fade(self) -> None:
        """There will be a pause: what was seen before it counts for little afterwards."""
        for share in self._shares:
            share.weight = min(share.weight, FORGET)


@dataclass
class Depth:
    """The choice of the depth for so many sequences as run together.

    Args:
        most: at most so many guesses; 0 for none.
        fixed: always `most`, whatever it costs.
    """

    most: int = MOST
    fixed: bool = False
    _times: dict[int, deque[float]] = field(default_factory=dict)
    _pause: int = FIRST_PAUSE
    _trial: bool = False
    _steps: int = 0

    def choose(self, rows: Sequence[Acceptance], others: int = 0) -> tuple[int, int]:
        """The depth of the next steps, and for depth 0 how many of them.

        Args:
            rows: of the sequences that may have guesses.
            others: how many more run beside them.
        """
        if self.fixed or self.most == 0:
            return self.most, LONGEST_PAUSE
        if 0 not in self._times:
            return 0, WARM
        best = self._best(rows, others)
        if self._trial:
            self._trial = False
            return max(1, best), 1
        if best:
            self._steps += 1
            if self._steps % CURIOUS == 0:
                self._pause = FIRST_PAUSE  # guessing has paid for a while
            return min(best + (self._steps % CURIOUS == 0), self.most), 1
        self._trial = True
        for row in rows:
            row.fade()
        if self._rate(1, rows, others) > NEAR * self._rate(0, rows, others):
            return 0, SHORT_PAUSE
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return 0, pause

    def took(self, depth: int, seconds: float) -> None:
        """A step with `depth` guesses took so long."""
        self._times.setdefault(depth, deque(maxlen=TIMES)).append(seconds)

    def _rate(self, depth: int, rows: Sequence[Acceptance], others: int) -> float:
        """Expected tokens per second."""
        return (others + sum(row.tokens(depth) for row in rows)) / self._cost(depth)

    def _best(self, rows: Sequence[Acceptance], others: int) -> int:
        """The depth with the most tokens per second; one deeper than what is known at most."""
        deepest = min(self.most, self._deepest + 1)
        best = max(range(1, deepest + 1), key=lambda depth: self._rate(depth, rows, others))
        return best if self._rate(best, rows, others) > MARGIN * self._rate(0, rows, others) else 0

    def _cost(self, depth: int) -> float:
        """Seconds of a step: measured, else on the line through depth 0 and the deepest that is known."""
        times, deepest = self._times.get(depth, ()), self._deepest
        if depth == 0 or len(times) >= KNOWN:
            return statistics.median(times)
        none = self._cost(0)
        each = GUESSED_COST * none if deepest == 0 else max(0.0, self._cost(deepest) - none) / deepest
        return none + each * depth

    @property
    def _deepest(self) -> int:
        return max(depth for depth, times in self._times.items() if depth == 0 or len(times) >= KNOWN)
