"""Answers on which scorers are compared: recorded replies of other models, and texts made from them by a fixed seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from optiq.evals.data import Data

ANSWERS = 500
ARMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
FORMS = (
    "{work}\n#### {n}",
    "{work}\n####{n}",
    "{work}\n#### ${n}",
    "{work}\n#### {n}.00",
    "{work}\n#### {n} dollars",
    "{work}\nThe answer is {n}.",
    "{work}\nThe answer is ${n}. That took 3 steps.",
    "{work}\n**Answer: {n}**",
    "{work}\nThus \\boxed{{{n}}}",
    "{work}\nSo it is {n}",
    "{work}\n#### 7\nWait, that was wrong.\n#### {n}",
    "I am not sure...",
)
EDITS = (
    lambda text: text,
    lambda text: text.upper(),
    lambda text: text.lower(),
    lambda text: text.replace(",", ""),
    lambda text: f'"{text}"',
    lambda text: f"<<A title>>\n\n{text}\n\nP.S. One more thing.",
    lambda text: "\n".join(f"* {line}" for line in text.split("\n") if line.strip()),
    lambda text: f"{text}\n******\n{text}",
    lambda text: f"Sure:\n{text}\nIs there anything else I can help with?",
    lambda text: text[: len(text) // 3],
)


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def gsm8k(shared: Path) -> list[dict[str, Any]]:
    """`ANSWERS` rows {"answer", "target"}: recorded solutions of four models first, then gold work that ends in many ways."""
    draw = random.Random(1)
    found = []
    for row in lines(shared / "data" / "golden" / "gsm8k_example_model_solutions.jsonl"):
        target = row["ground_truth"].replace("A:", "####")
        found += [{"answer": row[arm]["solution"].replace("A:", "####"), "target": target} for arm in ARMS]
    for row in draw.sample(Data(shared / "data" / "eval").jsonl("gsm8k/test.jsonl"), ANSWERS - len(found)):
        work, _, gold = row["answer"].partition("\n#### ")
        number = int(gold.replace(",", ""))
        said = draw.choice([number, number, number + 1, number * 10])
        text = draw.choice(FORMS).format(work=work, n=f"{said:,}" if draw.random() < 0.5 else said)
        found.append({"answer": text, "target": row["answer"]})
    return found


def ifeval(shared: Path) -> list[dict[str, Any]]:
    """`ANSWERS` rows {"answer", "row"}: recorded replies to their own prompts, then edited ones to other prompts."""
    draw, golden = random.Random(2), shared / "data" / "golden"
    prompts = {row["prompt"]: row for row in Data(shared / "data" / "eval").jsonl("ifeval/input_data.jsonl")}
    replies = lines(golden / "ifeval_gpt4_responses.jsonl")
    found = [{"answer": row["response"], "row": prompts.pop(row["prompt"])} for row in replies if row["prompt"] in prompts]
    texts = [row["response"] for row in replies + lines(golden / "ifbench_sample_output.jsonl")]
    for row in draw.sample(list(prompts.values()), ANSWERS - len(found)):
        found.append({"answer": draw.choice(EDITS)(draw.choice(texts)), "row": row})
    return found
