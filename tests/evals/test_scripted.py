"""Every task through the engine's interface: gold answers score 100 %, corrupted ones 0 %."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from answers import gold_call
from optiq.evals import run as runs
from optiq.evals.data import Data
from optiq.evals.generator import EngineGenerator
from optiq.evals.prompts import Prompts
from optiq.evals.task import Sample, with_option
from optiq.evals.tasks import TASKS
from optiq.models.load import load
from optiq.serve.scripted import Script, ScriptedEngine
from replies import qwen_xml


def _call(sample: Sample) -> str:
    call = gold_call(sample)
    return qwen_xml(call.name, json.loads(call.arguments))


def _recorded(shared: Path) -> dict[str, str]:
    """Recorded replies that follow all instructions, by prompt."""
    lines = (shared / "data" / "golden" / "ifeval_gpt4_eval_strict.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines if line]
    return {row["prompt"]: row["response"] for row in rows if row["follow_all_instructions"]}


def _scripts(shared: Path) -> dict[str, tuple[Callable[[Sample], str], Callable[[Sample], str]]]:
    """By task: the gold reply, a corrupted one."""
    replies = _recorded(shared)
    return {
        "mmlu": (lambda s: f" {s.gold}", lambda s: f" {'ABCD'[('ABCD'.index(s.gold) + 1) % 4]}"),
        "gsm8k": (lambda s: f"So it is\n#### {s.gold:g}", lambda s: f"#### {s.gold + 1:g}"),
        "ifeval": (lambda s: replies[s.messages[0]["content"]], lambda s: " "),
        "bfcl": (_call, lambda s: _call(s).replace("<function=", "<function=no_")),
        "hashhop": (lambda s: s.gold["end"], lambda s: s.gold["end"][::-1]),
    }


@pytest.mark.parametrize("name", TASKS)
def test_gold_and_corrupted_replies(name: str, shared: Path, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = _tokenizer(tiny_model)
    task: Any = with_option(TASKS[name], "count", "0" if name == "ifeval" else "8")
    if name == "hashhop":
        task = with_option(task, "characters", "600")
    if name == "ifeval":
        task = _Only(task, set(_recorded(shared)))
    for part, say in zip(("gold", "corrupted"), _scripts(shared)[name], strict=True):
        said: dict[tuple[int, ...], list[int]] = {}
        engine = ScriptedEngine(tokenizer, lambda request, said=said: Script(said[request.prompt]))  # type: ignore[misc]
        generator = EngineGenerator(engine, Prompts(tokenizer, frozenset({tokenizer.eos_token_id})))
        for sample in task.samples(Data(shared / "data" / "eval")):
            ids = tokenizer.encode(say(sample), add_special_tokens=False)
            said[generator.prompts.request(sample)[0].prompt] = [*ids, tokenizer.eos_token_id]
        result = runs.run(task, Data(shared / "data" / "eval"), generator, tmp_path / part, {})
        assert len(result.rows) >= 8 and sum(result.correct) == (len(result.rows) if part == "gold" else 0), part


class _Only:
    """IFEval on some prompts."""

    def __new__(cls, task: Any, prompts: set[str]) -> Any:
        class Only(type(task)):  # type: ignore[misc]
            def samples(self, data: Data) -> list[Sample]:
                return [sample for sample in super().samples(data) if sample.messages[0]["content"] in prompts]

        return Only(task.count, task.max_tokens)


def _tokenizer(path: Path) -> Any:
    return load(path)[1]
