"""GSM8K's scorer: extraction, gold answers, and the recorded verdicts of its authors' grader."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from optiq.errors import InputError
from optiq.evals.data import Data
from optiq.evals.task import Answer, with_option
from optiq.evals.tasks.gsm8k import EXAMPLES, Gsm8k, extract, gold_number

ARMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7\n#### 1,234", 1234),
        ("#### $5.50 each", 5.5),
        ("#### 3\nWait.\n#### -4", -4),
        (r"Thus \boxed{\$18.00} and 7 more", 18),
        (r"\boxed{x = 12}", 12),
        ("The answer is: 42. There are 3 steps.", 42),
        ("the final answer = $ 1,000.5", 1000.5),
        ("First 12, then .5", 0.5),
        ("no number at all", None),
    ],
)
def test_extraction(text: str, number: float | None) -> None:
    assert extract(text) == number


def test_the_authors_verdicts(shared: Path) -> None:
    """A recorded solution ends on "A: N"; one that ends without it was graded as having no answer."""
    lines = (shared / "data" / "golden" / "gsm8k_example_model_solutions.jsonl").read_text().splitlines()
    compared = 0
    for line in lines:
        row = json.loads(line)
        gold = gold_number(row["ground_truth"].replace("A:", "####"))
        for arm in ARMS:
            solution = row[arm]["solution"].replace("A:", "####")
            found = extract(solution) if "####" in solution else None
            assert (found is not None and abs(found - gold) < 1e-3) == row[arm]["is_correct"], (row["question"], arm)
            compared += 1
    assert compared == 4 * len(lines) >= 200


def test_gold_solutions_are_right_and_corrupted_ones_wrong(shared: Path) -> None:
    data, task = Data(shared / "data" / "eval"), with_option(Gsm8k(), "count", "0")
    solutions = {f"gsm8k/{n}": row["answer"] for n, row in enumerate(data.jsonl("gsm8k/test.jsonl"))}
    samples = task.samples(data)
    assert len(samples) == 1319
    for sample in samples:
        assert task.score(sample, Answer(solutions[sample.id])).correct
        assert not task.score(sample, Answer(f"#### {sample.gold + 1}")).correct
        assert not task.score(sample, Answer("")).correct


def test_the_protocol_and_its_options(shared: Path) -> None:
    data = Data(shared / "data" / "eval")
    samples = Gsm8k().samples(data)
    assert len(samples) == 1000 == len({sample.id for sample in samples})
    prompt = samples[0].messages[0]["content"]
    assert prompt.count("Question:") == 4 and all(asked in prompt and solved in prompt for asked, solved in EXAMPLES)
    few = with_option(Gsm8k(), "count", "10").samples(data)
    assert {sample.id for sample in few} < {sample.id for sample in samples} and len(few) == 10
    assert with_option(Gsm8k(), "shots", "0").samples(data)[0].messages[0]["content"].count("Question:") == 1
    with pytest.raises(InputError, match=r"option gsm8k\.shots is 4, expected a whole number from 0 to 3"):
        Gsm8k(shots=4).samples(data)
    with pytest.raises(InputError, match=r"task gsm8k has no option 'shot'; it has count, shots, max_tokens"):
        with_option(Gsm8k(), "shot", "1")
    with pytest.raises(InputError, match=r"option gsm8k\.shots is 'two', expected a whole number"):
        with_option(Gsm8k(), "shots", "two")


@pytest.mark.parametrize(("asked", "solved"), EXAMPLES)
def test_the_worked_examples_are_right(asked: str, solved: str) -> None:
    equations = re.findall(r"((?:[\d.]+ [-+*/] )+[\d.]+) = ([\d.]*\d)", solved)
    assert len(equations) >= 2 and all(eval(left) == float(right) for left, right in equations)
    assert str(extract(solved)).removesuffix(".0") in solved.splitlines()[-2]
