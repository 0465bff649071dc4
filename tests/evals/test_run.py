"""Runs: resumed after a kill, independent of the order of answers, refused for another run's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from answers import Scripted
from optiq.errors import FormatError, InputError
from optiq.evals import run as runs
from optiq.evals.data import Data
from optiq.evals.generator import open_generator
from optiq.evals.prompts import Settings
from optiq.evals.task import Answer, Call, Sample, Verdict, deviations
from optiq.evals.tasks.gsm8k import Gsm8k


@dataclass(frozen=True)
class Echo:
    """Right where the answer is the sample's number."""

    name: ClassVar[str] = "echo"
    about: ClassVar[str] = "numbers"
    count: int = 6

    def samples(self, data: Data) -> list[Sample]:
        return [Sample(f"echo/{n}", n, ({"role": "user", "content": f"Say {n}."},), max_tokens=8) for n in range(self.count)]

    def score(self, sample: Sample, answer: Answer) -> Verdict:
        return Verdict(answer.text == str(sample.gold), {"gold": sample.gold})


def _say(sample: Sample) -> Answer:
    text = "wrong\u2028line" if sample.gold == 2 else str(sample.gold)
    return Answer(text, (Call("f", "{}"),) if sample.gold == 3 else (), 4)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = runs.run(Echo(), Data(), Scripted(_say), tmp_path / "a", {"model": "m"})
    killed = Scripted(_say, most=4)
    with pytest.raises(KeyboardInterrupt):
        runs.run(Echo(), Data(), killed, tmp_path / "b", {"model": "m"})
    part = tmp_path / "b" / "echo.part"
    part.write_text(part.read_text() + '{"id": "echo/0", "corr')  # a line that the kill tore
    second = Scripted(_say)
    resumed = runs.run(Echo(), Data(), second, tmp_path / "b", {"model": "m"})
    assert second.asked == ["echo/1", "echo/0"] and not part.exists()
    assert (tmp_path / "a" / "echo.jsonl").read_bytes() == (tmp_path / "b" / "echo.jsonl").read_bytes()
    assert whole == resumed == runs.read(tmp_path / "a" / "echo.jsonl")
    assert whole.correct == [True, True, False, True, True, True]
    third = Scripted(_say)
    assert runs.run(Echo(), Data(), third, tmp_path / "b", {"model": "m"}) == whole and third.asked == []


def test_results_of_another_run_are_refused_or_forgotten_on_request(tmp_path: Path) -> None:
    runs.run(Echo(), Data(), Scripted(_say), tmp_path, {"model": "m"})
    for task, about in ((Echo(), {"model": "other"}), (Echo(count=5), {"model": "m"})):
        with pytest.raises(InputError, match=r"holds the results of another run .* use --fresh or another -o"):
            runs.run(task, Data(), Scripted(_say), tmp_path, about)
    generator = Scripted(_say)
    runs.run(Echo(), Data(), generator, tmp_path, {"model": "other"}, fresh=True)
    assert len(generator.asked) == 6
    assert deviations(Echo(count=5)) == {"count": 5} and deviations(Echo()) == {}


@pytest.mark.parametrize("text", ["", "{}\n", "x\n", '{"kind": "optiq-eval", "schema": 9}\n'])
def test_a_file_that_is_no_result_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(FormatError, match="is no result of optiq eval"):
        runs.read(tmp_path / "x.jsonl")


def test_the_engine_gives_the_same_file_whatever_its_batch_size(tiny_model: Path, tmp_path: Path) -> None:
    for rows in (1, 5):
        runs.run(Echo(count=5), Data(), open_generator(str(tiny_model), Settings(), rows), tmp_path / str(rows), {})
    files = [(tmp_path / str(rows) / "echo.jsonl").read_bytes() for rows in (1, 5)]
    assert files[0] == files[1]
    lines = [json.loads(line) for line in files[0].decode().split("\n") if line][1:]
    assert len(lines) == 5 and all(line["tokens"] >= 1 and "<think>" not in line["answer"] for line in lines)


def test_thinking_and_choices(tiny_model: Path) -> None:
    generator = open_generator(str(tiny_model), Settings(thinking=True, thinking_tokens=7))
    asked, _ = generator.prompts.request(Gsm8k(count=1, max_tokens=5).samples(_One())[0])
    closed, _ = open_generator(str(tiny_model), Settings()).prompts.request(Gsm8k(count=1, max_tokens=5).samples(_One())[0])
    assert (asked.max_tokens, closed.max_tokens) == (12, 5) and asked.prompt != closed.prompt
    chosen = Sample("c", 0, text="The capital of France is", choices=(" A", " B", " C", " D"))
    ((_, answer),) = generator.answers([chosen])
    assert answer.text in chosen.choices and answer.tokens == 1
    with pytest.raises(InputError, match="begin with one token"):
        list(generator.answers([Sample("c", 0, text="x", choices=(" A", " A"))]))


class _One(Data):
    def jsonl(self, name: str) -> list[dict[str, str]]:
        return [{"question": "1 + 1?", "answer": "#### 2"}]
