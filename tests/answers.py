"""Generators for tests of evaluations: they say what a script says, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from optiq.evals.task import Answer, Sample


class Scripted:
    """Answers by a function, last sample first (a generator may answer in any order), and remembers what it was asked.

    Args:
        say: the answer to a sample.
        most: raise `KeyboardInterrupt` after so many answers, as a kill would.
    """

    def __init__(self, say: Callable[[Sample], Answer], most: int | None = None) -> None:
        self.say, self.most = say, most
        self.asked: list[str] = []

    def answers(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Answer]]:
        for sample in reversed(samples):
            if self.most is not None and len(self.asked) >= self.most:
                raise KeyboardInterrupt
            self.asked.append(sample.id)
            yield sample, self.say(sample)
