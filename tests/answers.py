"""For tests of evaluations: a generator that says what a script says, and gold calls of BFCL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from optiq.evals.task import Answer, Call, Sample
from optiq.evals.tasks.bfcl import called


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


def gold_call(sample: Sample) -> Call:
    """The first possible answer of a sample."""
    ((name, possible),) = sample.gold["possible"].items()
    return Call(called(name), json.dumps({key: _first(values) for key, values in possible.items() if _first(values) != ""}))


def _first(values: list[Any]) -> Any:
    value = next((value for value in values if value != ""), "")
    if isinstance(value, dict):
        return {key: _first(inner) for key, inner in value.items() if _first(inner) != ""}
    return [_first([item]) for item in value] if isinstance(value, list) else value
