"""Runs one task: asks for every answer that is not on the disk yet, judges it, and writes one line per sample.

    FOLDER/<task>.jsonl    line 1: what was run (`header`); then {"id", "correct", "answer", "calls", "tokens", "finish",
                           "details"} in the order of the samples
    FOLDER/<task>.part     the same lines in the order in which they came, while it runs; what a kill leaves

A second run with the same header goes on where the first one stopped; another header is refused unless the caller wants a new
start. No times are written: two runs give the same bytes, whatever their batch size and however often they were killed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optiq import files
from optiq.errors import FormatError, InputError
from optiq.evals.data import Data
from optiq.evals.generator import Generator
from optiq.evals.task import Answer, Call, Programs, Sample, Task, Verdict, options
from optiq.events import QUIET, Events

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One sample's answer and verdict."""

    id: str
    answer: Answer
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """The line of the file."""
        return {
            "id": self.id,
            "correct": self.verdict.correct,
            "answer": self.answer.text,
            "calls": [dataclasses.asdict(call) for call in self.answer.calls],
            "tokens": self.answer.tokens,
            "finish": self.answer.finish,
            "details": dict(self.verdict.details),
        }

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Row:
        """A row from its line."""
        calls = tuple(Call(**call) for call in line["calls"])
        answer = Answer(line["answer"], calls, line["tokens"], line["finish"])
        return cls(line["id"], answer, Verdict(line["correct"], line["details"]))


@dataclass(frozen=True)
class Result:
    """One task of one model: what was run, and every sample."""

    header: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.header["task"])

    @property
    def correct(self) -> list[bool]:
        """The verdicts, in the order of the samples."""
        return [row.verdict.correct for row in self.rows]

    @property
    def by_id(self) -> dict[str, bool]:
        """The verdicts by sample."""
        return {row.id: row.verdict.correct for row in self.rows}


def run(
    task: Task,
    data: Data,
    generator: Generator,
    folder: Path,
    about: Mapping[str, Any],
    fresh: bool = False,
    events: Events = QUIET,
    programs: Programs | None = None,
) -> Result:
    """Answer and judge all samples of a task; work that is on the disk is not done again.

    Args:
        task: with its options.
        data: where its questions are.
        generator: who answers.
        folder: where results go; made if need be.
        about: what else decides the answers (model, thinking, caches); goes into the header.
        fresh: forget results of another header instead of refusing.
        events: where progress goes.
        programs: what runs programs that a model wrote; needed where the task has such.

    Raises:
        InputError: the folder holds results of another run, or there is nothing to ask.
        OptiqError: an answer could not be had; the finished ones stay.
    """
    data.read.clear()  # the header names this task's files alone
    samples = task.samples(data)
    if not samples:
        raise InputError(f"task {task.name} has no samples with these options")
    head = header(task, data, samples, about)
    whole, part = folder / f"{task.name}.jsonl", folder / f"{task.name}.part"
    done = {row.id: row for place in (whole, part) for row in _kept(place, head, fresh)}
    missing = [sample for sample in samples if sample.id not in done]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        _restart(part, head, done.values())
        with part.open("a", encoding="utf-8") as file, events.stage(f"{task.name}", len(samples), "samples") as stage:
            stage.advance(len(samples) - len(missing))
            for sample, answer in generator.answers(missing):
                row = Row(sample.id, answer, judge(task, sample, answer, programs))
                done[sample.id] = row
                file.write(_line(row.as_json()))
                file.flush()
                stage.advance()
    result = Result(head, tuple(done[sample.id] for sample in samples))
    if missing:
        files.write_text(whole, "".join([_line(head), *(_line(row.as_json()) for row in result.rows)]))
        part.unlink(missing_ok=True)
    return result


def judge(task: Task, sample: Sample, answer: Answer, programs: Programs | None = None) -> Verdict:
    """The verdict on an answer, after its program has run where that decides.

    Raises:
        InputError: a program decides, and nothing is there to run it.
    """
    found = task.score(sample, answer)
    if isinstance(found, Verdict):
        return found
    if programs is None:
        raise InputError(f"task {task.name} runs programs that a model wrote, and no sandbox was given; give `programs`")
    return found.verdict(programs.run(found))


def header(task: Task, data: Data, samples: list[Sample], about: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the results of a run, as its files and reports show it."""
    return {
        "schema": SCHEMA,
        "kind": "optiq-eval",
        "task": task.name,
        "options": options(task),
        "samples": len(samples),
        "about": dict(about),
        "data": data.sources(),
    }


def read(path: Path) -> Result:
    """The results of a file.

    Raises:
        FormatError: it is none, or of another version.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    try:
        head, *rows = [json.loads(line) for line in lines]
        if head["kind"] != "optiq-eval" or head["schema"] != SCHEMA:
            raise KeyError("schema")
        return Result(head, tuple(Row.read(row) for row in rows))
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is no result of optiq eval (schema {SCHEMA}); run the task again") from error


def _kept(place: Path, head: Mapping[str, Any], fresh: bool) -> list[Row]:
    """Rows of an earlier run of the same header; the line that a kill tore is left out."""
    if not place.is_file():
        return []
    first, *lines = place.read_text(encoding="utf-8").split("\n")
    if first + "\n" != _line(head):
        if fresh:
            return []
        raise InputError(f"{place} holds the results of another run (model, options or data differ); use --fresh or another -o")
    return [Row.read(json.loads(line)) for line in lines[:-1]]  # what follows the last end of a line was cut off


def _restart(part: Path, head: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """The file of a run in progress, without torn lines."""
    files.write_text(part, "".join([_line(head), *(_line(row.as_json()) for row in rows)]))


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
