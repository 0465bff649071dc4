"""HashHop: a long list of assignments between random words; following some of them from a start must end on one word.

Protocol: words of 16 letters, contexts of 12,000 characters, 25 questions for each of 1 to 4 hops, no working shown, the last
word of the reply decides. Everything is drawn from a fixed seed; there are no data files. Where a model takes less, the context
is as long as it takes (`fitted`); with 0 characters it is so in any case.

    hop 2: A = B somewhere, B = C somewhere else; the question is A, the answer C.

Every word stands on the left side once at most, so a chain from any start is one, and each chain ends after the number of hops
that is asked for. Source: Magic, "100M Token Context Windows", 2024, which defines the task.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from optiq.errors import InputError
from optiq.evals.data import Data
from optiq.evals.task import SEED, Answer, Sample, Verdict

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
WIDTH = 16
LINE = 2 * WIDTH + len(" = \n")
MOST = 4_000_000  # characters, where nothing limits them
MARGIN = 0.98  # of what one question takes: the words of others may have some more tokens


@dataclass(frozen=True)
class HashHop:
    """Chains of random words.

    Args:
        count: questions, evenly over the hops; at least one each.
        hops: the numbers of hops.
        characters: of the list of assignments; 0 for as many as the models take.
        seed: of words and chains.
        max_tokens: of a reply.
    """

    name: ClassVar[str] = "hashhop"
    about: ClassVar[str] = "chains of random words in a long context, 1 to 4 hops"
    runs_programs: ClassVar[bool] = False
    count: int = 100
    hops: tuple[int, ...] = (1, 2, 3, 4)
    characters: int = 12_000
    seed: int = SEED
    max_tokens: int = 512

    def fitted(self, takes: Callable[[Sample], bool]) -> HashHop:
        """See `Fitting`: the number of characters is lowered, to whole hundreds, until the longest question is taken."""

        def fits(characters: int) -> bool:
            return takes(replace(self, characters=characters)._sample(max(self.hops), 0))

        self._check()
        if self.characters and fits(self.characters):
            return self
        low, high = self._least(), self.characters or self._least()
        if not fits(low):
            raise InputError(f"hashhop: the model takes no question of {low} characters; leave this task out")
        while not self.characters and high < MOST and fits(high):
            low, high = high, 2 * high
        while high - low > max(100, low // 100):
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return replace(self, characters=max(self._least(), int(MARGIN * low) // 100 * 100))

    def samples(self, data: Data) -> list[Sample]:
        """The questions, those of fewer hops first."""
        self._check()
        each = max(1, (self.count or 100) // len(self.hops))
        return [self._sample(hops, number) for hops in self.hops for number in range(each)]

    def _least(self) -> int:
        return LINE * max(self.hops)

    def _check(self) -> None:
        if self.count < 0 or not self.hops or min(self.hops) < 1:
            raise InputError(f"option hashhop.hops is {self.hops}, expected whole numbers of at least 1 such as 1+2")
        if self.characters and self.characters < self._least():
            raise InputError(f"option hashhop.characters is {self.characters}, expected at least {self._least()}, or 0")

    def score(self, sample: Sample, answer: Answer) -> Verdict:
        """Right if the last word of 16 letters in the reply is the end of the chain."""
        found = re.findall(rf"(?<![A-Za-z])[A-Za-z]{{{WIDTH}}}(?![A-Za-z])", answer.text)
        last, hops = found[-1] if found else None, sample.gold["hops"]
        return Verdict(last == sample.gold["end"], {"extracted": last, "part": f"{hops} hop{'s' if hops > 1 else ''}"})

    def _sample(self, hops: int, number: int) -> Sample:
        pairs, start, end = chains(random.Random(f"{self.seed}/{hops}/{number}"), hops, self.characters // LINE)
        listed = "\n".join(f"{left} = {right}" for left, right in pairs)
        ask = (
            f"{listed}\n\nEach line above assigns the word on the right to the word on the left. Start at {start} and follow "
            f"the assignments {hops} time{'s' if hops > 1 else ''}. Reply with the word that you reach, and nothing else."
        )
        gold = {"end": end, "hops": hops}
        return Sample(f"hashhop/{hops}/{number}", gold, ({"role": "user", "content": ask},), max_tokens=self.max_tokens)


def chains(draw: random.Random, hops: int, lines: int) -> tuple[list[tuple[str, str]], str, str]:
    """Assignments in a random order, and the start and the end of one of their chains.

    Args:
        draw: where randomness comes from.
        hops: assignments in each chain.
        lines: assignments at most; whole chains, at least one.

    Returns:
        (left, right) of each line; the word that is asked for; the word that it leads to.
    """
    count = max(1, lines // hops)
    words = _words(draw, count * (hops + 1))
    every = [words[index * (hops + 1) : (index + 1) * (hops + 1)] for index in range(count)]
    pairs = [pair for chain in every for pair in zip(chain, chain[1:], strict=False)]
    draw.shuffle(pairs)
    asked = draw.choice(every)
    return pairs, asked[0], asked[-1]


def _words(draw: random.Random, count: int) -> list[str]:
    """So many different words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choices(LETTERS, k=WIDTH))] = None
    return list(found)
