"""HumanEval: the code of a reply, the program around it, and what its end says. Programs of the tests' own run bare."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from answers import Scripted
from optiq.errors import FormatError, InputError
from optiq.evals import run as runs
from optiq.evals.data import Data
from optiq.evals.task import Answer, Trial, with_option
from optiq.evals.tasks.humaneval import HumanEval, extract

CODE = "import math\n\n\ndef area(r):\n    return math.pi * r * r"
PROMPT = """from typing import List


def half(x: int) -> int:
    return x // 2


def total(xs: List[int]) -> int:
    '''Half of the sum.'''
"""
TEST = """
def check(candidate):
    assert candidate([1, 3]) == 2
    assert candidate([]) == 0
"""


@dataclass(frozen=True)
class Ended:
    code: int | None
    stdout: str
    stderr: str = ""
    stopped: str | None = None


class Bare:
    """Runs programs that the tests wrote themselves."""

    def run(self, trial: Trial) -> Ended:
        done = subprocess.run([sys.executable, "-I", "-c", trial.program], capture_output=True, text=True, timeout=60)
        return Ended(done.returncode, done.stdout, done.stderr)


def _verdict(reply: str):
    sample = HumanEval().samples(_Given())[0]
    return runs.judge(HumanEval(), sample, Answer(reply), Bare())


class _Given(Data):
    def jsonl(self, name: str) -> list[dict[str, str]]:
        return [{"task_id": "HumanEval/7", "prompt": PROMPT, "entry_point": "total", "test": TEST}]


@pytest.mark.parametrize(
    "reply",
    [
        f"Sure:\n```python\n{CODE}\n```\nIt squares.",
        f"```\n{CODE}",
        f"```py\nprint('first')\n```\nand\n~~~\n```Python\n{CODE}\n```\n```\nprint(area(2))\n```",
        f"1. So:\n   ```python\n{''.join(f'   {line}' for line in CODE.splitlines(True))}\n   ```",
        f"Here is the function:\n\n{CODE}\n\nThis computes the area.",
        CODE,
    ],
)
def test_the_code_of_a_reply(reply: str) -> None:
    assert extract(reply, "area").strip() == CODE


def test_the_last_block_that_defines_the_function_counts() -> None:
    first, second = CODE.replace("math.pi", "3"), CODE
    assert extract(f"```\n{first}\n```\nBetter:\n```\n{second}\n```\nUse:\n```\narea(1)\n```", "area").strip() == second
    assert extract("```\nreturn 1\n```", "area") == "return 1\n" and extract("    return 1", "area") == "    return 1"


@pytest.mark.parametrize(
    "reply",
    [
        "```python\nfrom __future__ import annotations\ndef total(xs):\n    return half(sum(xs))\n```",
        "    return half(sum(xs))",
        "```\nreturn half(sum(xs))\n```",
        "total = lambda xs: half(sum(xs))",
        "```\ndef total(xs: List[int]):\n    return half(sum(xs))\nif __name__ == '__main__':\n    total(input())\n```",
    ],
)
def test_right_code_passes(reply: str) -> None:
    assert _verdict(reply).correct


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("def total(xs):\n    return None", "AssertionError"),
        ("def total(xs):\n    raise KeyError(xs)", "KeyError"),
        ("def total(xs):\n    return half(sum(xs)) + 1", "AssertionError"),
        ("def total(xs):\n    exit(0)", "ended early, code 0"),
        ("import os\ndef total(xs):\n    print('passed', flush=True); os._exit(0)", "ended early, code 0"),
        ("def total(xs) return", "SyntaxError"),
        ("def other(xs):\n    return half(sum(xs))", "AssertionError"),
        ("I cannot.", "SyntaxError"),
        ("", "AssertionError"),
    ],
)
def test_wrong_code_fails_for_its_reason(reply: str, problem: str) -> None:
    found = _verdict(reply)
    assert not found.correct and found.details["problem"] == problem


def test_a_limit_is_the_reason_and_a_mark_in_the_middle_is_none() -> None:
    trial = Trial("", "m" * 64, 1, 1)
    assert trial.verdict(Ended(None, "m" * 64, "", "time")).details["problem"] == "time"
    assert trial.verdict(Ended(0, f"x\n{'m' * 64}\n")).correct and not trial.verdict(Ended(0, f"{'m' * 64}\nmore")).correct
    assert not trial.verdict(Ended(1, "m" * 64, "Traceback\n  File\nValueError: a\n")).correct


def test_the_protocol_and_canonical_solutions(shared: Path) -> None:
    data = Data(shared / "data" / "eval")
    samples = HumanEval().samples(data)
    assert len(samples) == 164 == len({sample.id for sample in samples}) and data.sources()[0]["pinned"] is True
    rows = {f"humaneval/{row['task_id'].split('/')[1]}": row for row in data.jsonl("humaneval/HumanEval.jsonl.gz")}
    assert all(rows[sample.id]["canonical_solution"] not in str(sample.messages) for sample in samples)
    few = with_option(HumanEval(), "count", "4")
    right = Scripted(lambda sample: Answer(f"```python\n{rows[sample.id]['prompt']}{rows[sample.id]['canonical_solution']}```"))
    for sample, answer in right.answers(few.samples(data)):
        assert runs.judge(few, sample, answer, Bare()).correct
        assert not runs.judge(few, sample, Answer(""), Bare()).correct


def test_without_a_runner_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="task humaneval runs programs that a model wrote"):
        runs.run(HumanEval(), _Given(), Scripted(lambda _: Answer(CODE)), tmp_path, {})


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "humaneval").mkdir()
    (tmp_path / "humaneval" / "HumanEval.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00damaged")
    with pytest.raises(FormatError, match=r"HumanEval\.jsonl\.gz is damaged"):
        HumanEval().samples(Data(tmp_path))
