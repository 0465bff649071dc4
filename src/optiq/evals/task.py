"""What a task is to the runner: samples out of data, a verdict out of an answer. No MLX, no engine.

    Task.samples(data) -> Sample ... -> a generator writes an Answer ... -> Task.score(sample, answer) -> Verdict

A task is a frozen dataclass whose fields are its options; the defaults are the reference protocol, so that a deviation is
always an option that somebody set, and stands in the results. Scoring is a pure function: same answer, same verdict.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from optiq.errors import InputError

if TYPE_CHECKING:
    from optiq.evals.data import Data

SEED = 42
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One question.

    Args:
        id: its name in the results; stable over runs and machines.
        gold: what the scorer compares with.
        messages: a chat, to be written by the model's template; or
        text: a prompt as it stands, without a template.
        shorter: what stands in its place where that is longer than the model's context, in the order of preference.
        tools: those that the model may call, as in the OpenAI API.
        choices: texts of which the likeliest next one is the answer; nothing else is generated then.
        max_tokens: of the answer.
    """

    id: str
    gold: Any
    messages: tuple[Mapping[str, Any], ...] = ()
    text: str = ""
    shorter: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    choices: tuple[str, ...] = ()
    max_tokens: int = 512


@dataclass(frozen=True)
class Call:
    """A call of a tool: its name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Args:
        text: the reply without reasoning and calls; of a sample with choices, the chosen one.
        calls: of tools.
        tokens: that were generated, reasoning included.
        finish: `stop` or `length`.
    """

    text: str
    calls: tuple[Call, ...] = ()
    tokens: int = 0
    finish: str = "stop"


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what else the scorer saw (values that JSON knows)."""

    correct: bool
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A program that a model wrote, with the tests that decide; a verdict once it has run.

    Args:
        program: Python, the tests included.
        mark: the last line that it prints where it has come to its end.
        cpu_seconds: of processor time that it may take.
        memory_bytes: that it may take.
        details: for the verdict.
    """

    program: str
    mark: str
    cpu_seconds: float
    memory_bytes: int
    details: Mapping[str, Any] = field(default_factory=dict)

    def verdict(self, outcome: Outcome) -> Verdict:
        """Right where the program came to its end; else the details say what stopped it, in words that no second run changes."""
        if outcome.code == 0 and outcome.stdout.rstrip().rpartition("\n")[2] == self.mark:
            return Verdict(True, self.details)
        raised = re.findall(r"^([A-Za-z_][\w.]*)(?::.*)?$", outcome.stderr.rstrip().rpartition("\n")[2])
        problem = outcome.stopped or (raised[0] if raised and outcome.code else f"ended early, code {outcome.code}")
        return Verdict(False, {**self.details, "problem": problem})


class Task(Protocol):
    """A frozen dataclass of options that makes samples and judges answers.

    Attributes:
        name: in the table, and of its result files.
        about: one line for people.
        runs_programs: whether its verdicts are those of trials.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    runs_programs: ClassVar[bool]

    def samples(self, data: Data) -> list[Sample]:
        """The questions, the same for the same options and data."""

    def score(self, sample: Sample, answer: Answer) -> Verdict | Trial:
        """Judge one answer, or say which program does."""


@runtime_checkable
class Fitting(Protocol):
    """A task whose questions can be made as long as models take."""

    def fitted(self, takes: Callable[[Sample], bool]) -> Task:
        """The task with questions that are taken; itself where they are already.

        Args:
            takes: whether a question and its reply lie within the models' contexts.

        Raises:
            InputError: not even its shortest question is taken.
        """


class Outcome(Protocol):
    """How a program ended."""

    @property
    def code(self) -> int | None:
        """Its exit code; None where it was stopped."""

    @property
    def stdout(self) -> str:
        """What it printed."""

    @property
    def stderr(self) -> str:
        """What it printed there."""

    @property
    def stopped(self) -> str | None:
        """The limit that it ran into."""


class Programs(Protocol):
    """What runs trials; isolation is its business."""

    def run(self, trial: Trial) -> Outcome:
        """Run one to its end, or to a limit."""


def options(task: Any) -> dict[str, Any]:
    """The options of a task with their values."""
    return dataclasses.asdict(task)


def deviations(task: Any) -> dict[str, Any]:
    """The options that differ from the reference protocol."""
    return {f.name: getattr(task, f.name) for f in dataclasses.fields(task) if getattr(task, f.name) != f.default}


def with_option(task: T, name: str, value: str) -> T:
    """The task with one option set from text.

    Raises:
        InputError: it has no such option, or the value is not of its type.
    """
    fields = {f.name: f for f in dataclasses.fields(task)}  # type: ignore[arg-type]
    noun = getattr(task, "name", "task")
    if name not in fields:
        raise InputError(f"task {noun} has no option {name!r}; it has {', '.join(fields) or 'none'}")
    default = fields[name].default
    words = {"true": True, "false": False}
    try:
        if isinstance(default, bool):
            parsed: Any = words[value.lower()]
        elif isinstance(default, tuple):
            parsed = tuple(int(part) for part in value.split("+"))
        else:
            parsed = int(value)
    except (KeyError, ValueError):
        kind = (
            "true or false"
            if isinstance(default, bool)
            else "whole numbers such as 1+2"
            if isinstance(default, tuple)
            else "a whole number"
        )
        raise InputError(f"option {noun}.{name} is {value!r}, expected {kind}") from None
    changed: T = dataclasses.replace(task, **{name: parsed})  # type: ignore[type-var]
    return changed


def pick(rows: Sequence[T], count: int, seed: int = SEED) -> list[T]:
    """At most so many rows, drawn without replacement by a fixed seed, in their own order; a smaller draw lies in a larger one.

    Args:
        rows: all of them.
        count: at most; 0 for all.
    """
    if count < 0:
        raise InputError(f"samples is {count}, expected a whole number of at least 1, or 0 for all")
    if count == 0 or count >= len(rows):
        return list(rows)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[index] for index in sorted(order[:count])]
