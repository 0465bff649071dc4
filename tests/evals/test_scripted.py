"""Every task through the engine's interface: gold answers score 100 %, corrupted ones 0 %."""

from __future__ import annotations

from pathlib import Path

import pytest

import gold
from optiq.evals.data import Data
from optiq.evals.programs import Sandboxed
from optiq.evals.tasks import TASKS
from optiq.models.load import load_tokenizer
from optiq.sandbox import runner


@pytest.mark.parametrize("name", TASKS)
def test_gold_and_corrupted_replies(name: str, shared: Path, tiny_model: Path, tmp_path: Path) -> None:
    data, task = Data(shared / "data" / "eval"), gold.task_of(name, shared, 8)
    for part, say in zip(("gold", "corrupted"), gold.scripts(shared)[name], strict=True):
        programs = Sandboxed(runner()) if task.runs_programs else None
        result = gold.scored(task, say, data, load_tokenizer(tiny_model), tmp_path / part, programs)
        assert len(result.rows) >= 8 and sum(result.correct) == (len(result.rows) if part == "gold" else 0), part


def test_letters_by_chance_are_right_a_quarter_of_the_time(shared: Path, tiny_model: Path, tmp_path: Path) -> None:
    task = gold.task_of("mmlu", shared, 114)
    result = gold.scored(task, gold.by_chance, Data(shared / "data" / "eval"), load_tokenizer(tiny_model), tmp_path)
    assert 0.1 < sum(result.correct) / len(result.rows) < 0.4
