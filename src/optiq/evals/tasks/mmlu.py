"""MMLU: multiple choice over 57 subjects; the likeliest of the four letters after "Answer:" is the answer.

Protocol: raw prompts without a chat template, the subject's 5 development questions before each, 1,000 test questions shared
evenly among the subjects (17 each, 969 in all), the choice by logits. Where a prompt is longer than the model's context, solved
questions are left out from the end until it is not, as the authors do; such a verdict says how many there were.
Source: Hendrycks et al., "Measuring Massive Multitask Language Understanding", 2021 (arXiv 2009.03300).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from optiq.errors import FormatError, InputError
from optiq.evals.data import Data
from optiq.evals.task import SEED, Answer, Sample, Verdict, pick

LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question, its four choices, and the index of the right one."""

    text: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Mmlu:
    """Multiple choice.

    Args:
        count: questions, evenly by subject and rounded down to whole ones; 0 for all.
        shots: solved questions before each, 0 to 5.
        generate: let the model write its answer in a chat, without solved questions, instead of comparing logits.
        max_tokens: of an answer that is written.
    """

    name: ClassVar[str] = "mmlu"
    about: ClassVar[str] = "multiple choice over 57 subjects, 5-shot, by logits"
    runs_programs: ClassVar[bool] = False
    count: int = 1000
    shots: int = 5
    generate: bool = False
    max_tokens: int = 512

    def samples(self, data: Data) -> list[Sample]:
        """The questions of all subjects."""
        if not 0 <= self.shots <= 5:
            raise InputError(f"option mmlu.shots is {self.shots}, expected a whole number from 0 to 5")
        subjects = [re.sub(r"_test\.csv$", "", name.rpartition("/")[2]) for name in data.names("mmlu/test")]
        found = []
        for subject, count in self._shares(subjects).items():
            shown = questions(data.csv(f"mmlu/dev/{subject}_dev.csv"), subject)[: self.shots]
            asked = list(enumerate(questions(data.csv(f"mmlu/test/{subject}_test.csv"), subject)))
            found += [self._sample(subject, number, question, shown) for number, question in pick(asked, count)]
        return found

    def score(self, sample: Sample, answer: Answer) -> Verdict:
        """Right if the letter is; of a written answer the last letter that it names."""
        letter = answer.text.strip() if sample.choices else written(answer.text)
        found: dict[str, Any] = {"extracted": letter, "gold": sample.gold}
        shown = len(sample.shorter)  # each shorter text has one solved question less
        if sample.choices and shown < self.shots:
            found |= {"shots": shown, "note": "fewer solved questions, to fit the context"}
        return Verdict(letter == sample.gold, found)

    def _shares(self, subjects: Sequence[str]) -> dict[str, int]:
        """How many questions of which subject; with fewer questions than subjects, one of each drawn subject."""
        if self.count == 0:
            return dict.fromkeys(subjects, 0)
        if self.count < len(subjects):
            order = list(subjects)
            random.Random(SEED).shuffle(order)
            return {subject: 1 for subject in subjects if subject in order[: self.count]}
        return dict.fromkeys(subjects, self.count // len(subjects))

    def _sample(self, subject: str, number: int, question: Question, shown: Sequence[Question]) -> Sample:
        name, gold = f"mmlu/{subject}/{number}", LETTERS[question.right]
        if self.generate:
            ask = f"{_written(question)}\nEnd with a line 'Answer: X', where X is one of A, B, C and D."
            return Sample(name, gold, ({"role": "user", "content": ask},), max_tokens=self.max_tokens)
        head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}."
        solved = [f"{_written(other)}\nAnswer: {LETTERS[other.right]}" for other in shown]
        asked = f"{_written(question)}\nAnswer:"
        texts = ["\n\n".join([head, *solved[:count], asked]) for count in range(len(solved), -1, -1)]
        return Sample(name, gold, text=texts[0], shorter=tuple(texts[1:]), choices=tuple(f" {letter}" for letter in LETTERS))


def questions(rows: Sequence[Sequence[str]], subject: str) -> list[Question]:
    """Rows of a file: question, four choices, the right one as a letter or as a number from 0; a line of heads is left out.

    Raises:
        FormatError: a row of another form.
    """
    found = []
    for number, row in enumerate(rows, 1):
        if number == 1 and row[:1] == ["question"]:
            continue
        right = LETTERS.find(row[-1]) if row and len(row[-1]) == 1 else -1
        right = int(row[-1]) if row and row[-1] in ("0", "1", "2", "3") else right
        if len(row) != 6 or right < 0:
            raise FormatError(
                f"mmlu: {subject}, row {number} has {len(row)} fields, expected question, four choices and the answer"
            )
        found.append(Question(row[0], tuple(row[1:5]), right))
    return found


def written(text: str) -> str | None:
    """The letter that a written answer gives: behind the last "answer", else the last one that stands alone."""
    named = re.findall(r"answer\s*(?:is|:)?\W{0,4}([ABCD])\b", text, re.IGNORECASE) or re.findall(r"\b([ABCD])\b", text)
    return named[-1].upper() if named else None


def _written(question: Question) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True)]
    return "\n".join([question.text.strip(), *lines])
