"""Gold and corrupted replies of every task, said by a scripted engine: what must score 100 %, and what must score 0 %."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from answers import gold_call
from optiq.evals import run as runs
from optiq.evals.data import Data
from optiq.evals.generator import EngineGenerator
from optiq.evals.prompts import Prompts
from optiq.evals.run import Result
from optiq.evals.task import Programs, Sample
from optiq.evals.tasks import TASKS
from optiq.serve.scripted import Script, ScriptedEngine
from replies import qwen_xml

Say = Callable[[Sample], str]
LETTERS = "ABCD"


def scripts(shared: Path) -> Mapping[str, tuple[Say, Say]]:
    """By task: the gold reply, a corrupted one."""
    recorded, solved = _recorded(shared), _solved(shared)
    return {
        "mmlu": (lambda s: f" {s.gold}", lambda s: f" {LETTERS[(LETTERS.index(s.gold) + 1) % 4]}"),
        "gsm8k": (lambda s: f"So it is\n#### {s.gold:.12g}", lambda s: f"#### {s.gold + 1:.12g}"),
        "ifeval": (lambda s: recorded[s.messages[0]["content"]], lambda s: " "),
        "bfcl": (_call, lambda s: _call(s).replace("<function=", "<function=no_")),
        "humaneval": (lambda s: _function(s, solved[s.id]), lambda s: _function(s, "    return None")),
        "hashhop": (lambda s: s.gold["end"], lambda s: s.gold["end"][::-1]),
    }


def by_chance(sample: Sample) -> str:
    """MMLU's letter where the logits say nothing: one of four, drawn by the question's name."""
    return f" {random.Random(sample.id).choice(LETTERS)}"


def task_of(name: str, shared: Path, count: int) -> Any:
    """A task with so many samples, IFEval only with prompts whose recorded reply follows all instructions."""
    task: Any = TASKS[name]
    fields = {"count": 0 if name == "ifeval" else count} | ({"characters": 600} if name == "hashhop" else {})
    fields |= {"max_tokens": 4096} if name == "humaneval" else {}  # the embedded tokenizer needs more tokens than others
    task = type(task)(**fields)
    if name != "ifeval":
        return task
    prompts = set(_recorded(shared))

    class Only(type(task)):  # type: ignore[misc]
        def samples(self, data: Data) -> list[Sample]:
            return [sample for sample in super().samples(data) if sample.messages[0]["content"] in prompts]

    return Only(count=0)


def scored(task: Any, say: Say, data: Data, tokenizer: Any, folder: Path, programs: Programs | None = None) -> Result:
    """A run of a task in which every sample is answered as the script says, through the engine's interface."""
    said: dict[tuple[int, ...], list[int]] = {}
    engine = ScriptedEngine(tokenizer, lambda request: Script(said[request.prompt]))
    prompts = Prompts(tokenizer, frozenset({tokenizer.eos_token_id}))
    for sample in task.samples(data):
        ids = tokenizer.encode(say(sample), add_special_tokens=False)
        said[prompts.request(sample)[0].prompt] = [*ids, tokenizer.eos_token_id]
    return runs.run(task, data, EngineGenerator(engine, prompts), folder, {}, programs=programs)


def _call(sample: Sample) -> str:
    call = gold_call(sample)
    return qwen_xml(call.name, json.loads(call.arguments))


def _function(sample: Sample, body: str) -> str:
    return f"```python\n{sample.gold['prompt']}{body}\n```"


def _solved(shared: Path) -> dict[str, str]:
    """The canonical bodies of HumanEval by sample."""
    rows = Data(shared / "data" / "eval").jsonl("humaneval/HumanEval.jsonl.gz")
    return {f"humaneval/{row['task_id'].rpartition('/')[2]}": row["canonical_solution"] for row in rows}


def _recorded(shared: Path) -> dict[str, str]:
    """Recorded replies that follow all instructions, by prompt."""
    lines = (shared / "data" / "golden" / "ifeval_gpt4_eval_strict.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines if line]
    return {row["prompt"]: row["response"] for row in rows if row["follow_all_instructions"]}
