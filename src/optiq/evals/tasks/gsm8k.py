"""GSM8K: word problems of grade school, three worked examples in one user turn, the number after `####` decides.

Protocol: 1,000 of the 1,319 test problems drawn by a fixed seed, 3 fixed chain-of-thought examples, 512 tokens, greedy.
Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021 (arXiv 2110.14168).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from optiq.errors import InputError
from optiq.evals.data import Data
from optiq.evals.task import Answer, Sample, Verdict, pick

TOLERANCE = 1e-3
EXAMPLES = (
    (
        "A baker fills 4 trays with 12 rolls each and sells 30 rolls. How many rolls are left?",
        "The baker makes 4 * 12 = 48 rolls.\nAfter selling 30 of them, 48 - 30 = 18 rolls are left.\n#### 18",
    ),
    (
        "Mara walks 3 miles on each of 5 days and half as far on the sixth day. How many miles does she walk in all?",
        "On the first 5 days she walks 3 * 5 = 15 miles.\nOn the sixth day she walks 3 / 2 = 1.5 miles.\n"
        "In all she walks 15 + 1.5 = 16.5 miles.\n#### 16.5",
    ),
    (
        "A jacket costs $80. It is sold at 25% off, and Tim pays with a $100 bill. How many dollars does he get back?",
        "The discount is 80 * 25 / 100 = 20 dollars.\nThe jacket costs 80 - 20 = 60 dollars.\n"
        "Tim gets back 100 - 60 = 40 dollars.\n#### 40",
    ),
)
_NUMBER = r"[-+]?\$?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
# In this order: the marker that was asked for, LaTeX's box, a sentence that says so.
_MARKS = (
    re.compile(rf"####\s*({_NUMBER})"),
    re.compile(rf"\\boxed\{{[^\d{{}}+.-]*({_NUMBER})"),
    re.compile(rf"answer\s*(?:is|=|:)[^\d+.\n-]*({_NUMBER})", re.IGNORECASE),
)


@dataclass(frozen=True)
class Gsm8k:
    """Grade-school arithmetic.

    Args:
        count: problems; 0 for all.
        shots: worked examples, 0 to 3.
        max_tokens: of a solution.
    """

    name: ClassVar[str] = "gsm8k"
    about: ClassVar[str] = "grade-school word problems, 3-shot chain of thought"
    runs_programs: ClassVar[bool] = False

    count: int = 1000
    shots: int = 3
    max_tokens: int = 512

    def samples(self, data: Data) -> list[Sample]:
        """The problems, each as one user turn."""
        if not 0 <= self.shots <= len(EXAMPLES):
            raise InputError(f"option gsm8k.shots is {self.shots}, expected a whole number from 0 to {len(EXAMPLES)}")
        rows = list(enumerate(data.jsonl("gsm8k/test.jsonl")))
        return [
            Sample(
                id=f"gsm8k/{index}",
                gold=gold_number(row["answer"]),
                messages=({"role": "user", "content": self.prompt(row["question"])},),
                max_tokens=self.max_tokens,
            )
            for index, row in pick(rows, self.count)
        ]

    def prompt(self, question: str) -> str:
        """The user turn: what to do, the examples, the problem."""
        head = "Solve the problem step by step. End with a line '#### N', where N is the answer as a number."
        shown = [f"Question: {asked}\nAnswer: {solved}" for asked, solved in EXAMPLES[: self.shots]]
        return "\n\n".join([head, *shown, f"Question: {question}\nAnswer:"])

    def score(self, sample: Sample, answer: Answer) -> Verdict:
        """Right if the number that the answer ends on is the gold one, to 0.001."""
        found = extract(answer.text)
        return Verdict(found is not None and abs(found - sample.gold) < TOLERANCE, {"extracted": found, "gold": sample.gold})


def gold_number(solution: str) -> float:
    """The number behind `####` of a solution in the data."""
    found = re.search(rf"####\s*({_NUMBER})", solution)
    if found is None:
        raise InputError(f"gsm8k: a solution without '#### N': {solution[-60:]!r}; the data file is damaged")
    return _value(found[1])


def extract(text: str) -> float | None:
    """The number that a reply gives as its answer: behind `####`, in a box, after "answer is", else the last one.

    The last occurrence of a marker counts, for replies correct themselves.
    """
    for mark in _MARKS:
        if found := mark.findall(text):
            return _value(found[-1])
    numbers = re.findall(_NUMBER, text)
    return _value(numbers[-1]) if numbers else None


def _value(text: str) -> float:
    return float(re.sub(r"[\s$,]", "", text))
