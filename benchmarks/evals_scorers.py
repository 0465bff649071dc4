"""Scorers beside recorded verdicts and beside lm-evaluation-harness's own. Part of `evals.py`.

A disagreement is explained where a rule below shows the other side's error from the answer itself; what no rule shows is counted.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evals_answers
import harness
from harness import Bar

from optiq.evals.data import Data
from optiq.evals.task import Answer, Sample
from optiq.evals.tasks.gsm8k import Gsm8k, gold_number
from optiq.evals.tasks.ifeval import IfEval

WORKER = Path(__file__).parent / "lm_eval_worker.py"
ONE_SIGN = "keywords:letter_frequency"
REPEATS = 40  # of lm-eval's scorer where it disagrees: a verdict that it does not repeat is none


def gsm8k_verdict(row: dict[str, Any]) -> Any:
    """Ours on {"answer", "target"}."""
    return Gsm8k().score(Sample("", gold_number(row["target"])), Answer(row["answer"]))


def ifeval_verdict(row: dict[str, Any], answer: str) -> dict[str, Any]:
    """Ours on a row of the data, strict and loose by instruction."""
    gold = [[kind, given] for kind, given in zip(row["instruction_id_list"], row["kwargs"], strict=True)]
    return dict(IfEval().score(Sample("", gold), Answer(answer)).details)


def golden(_: Any) -> dict[str, Any]:
    """Recorded verdicts: solutions of four models to GSM8K by their authors' grader, replies to IFEval by the official script."""
    place = harness.SHARED / "data" / "golden"
    found: dict[str, Any] = {"gsm8k": [], "ifeval": []}
    counts = {"gsm8k": 0, "ifeval": 0}
    for row in evals_answers.lines(place / "gsm8k_example_model_solutions.jsonl"):
        for arm in evals_answers.ARMS:
            said = row[arm]["solution"].replace("A:", "####")
            ours = "####" in said and gsm8k_verdict({"answer": said, "target": row["ground_truth"].replace("A:", "####")}).correct
            counts["gsm8k"] += 1
            if ours != row[arm]["is_correct"]:
                found["gsm8k"].append({"question": row["question"], "arm": arm, "why": None})
    prompts = {row["prompt"]: row for row in Data(harness.SHARED / "data" / "eval").jsonl("ifeval/input_data.jsonl")}
    sides = {side: evals_answers.lines(place / f"ifeval_gpt4_eval_{side}.jsonl") for side in ("strict", "loose")}
    for side, rows in sides.items():
        for recorded, strict in zip(rows, sides["strict"], strict=True):
            row = prompts[recorded["prompt"]]
            ours = ifeval_verdict(row, recorded["response"])[side]
            counts["ifeval"] += len(ours)
            for n, (a, b) in enumerate(zip(ours, recorded["follow_instruction_list"], strict=True)):
                if a != b:
                    impossible = side == "loose" and strict["follow_instruction_list"][n] and not b
                    why = why_ifeval(row["instruction_id_list"][n], row["kwargs"][n])
                    found["ifeval"].append({"key": row["key"], "side": side, "kind": row["instruction_id_list"][n],
                                            "why": why, "strict_passes_and_loose_fails": impossible})  # fmt: skip
    return {"counts": counts, "disagreements": found}


def golden_bars(part: dict[str, Any]) -> list[Bar]:
    """Nothing unexplained."""
    return [_bar(f"7.golden_{name}", name, "recorded verdicts", part, name) for name in ("gsm8k", "ifeval")]


def lm_eval(_: Any) -> dict[str, Any]:
    """lm-eval's verdicts on 500 answers of each task."""
    answers = {"gsm8k": evals_answers.gsm8k(harness.SHARED), "ifeval": evals_answers.ifeval(harness.SHARED)}
    verdicts = {name: _asked(name, rows) for name, rows in answers.items()}
    found: dict[str, list[dict[str, Any]]] = {"gsm8k": [], "ifeval": []}
    for row, theirs in zip(answers["gsm8k"], verdicts["gsm8k"], strict=True):
        ours = gsm8k_verdict(row)
        used = theirs["strict-match" if theirs["strict-match"]["said"] != "[invalid]" else "flexible-extract"]
        if ours.correct != bool(used["score"]):
            why = why_gsm8k(row["answer"], ours.correct, ours.details["gold"], used["said"])
            found["gsm8k"].append({"end": row["answer"][-80:], "ours": ours.correct, "lm_eval_took": used["said"], "why": why})
    counts = {"gsm8k": len(answers["gsm8k"]), "ifeval": 0}
    for row, theirs in zip(answers["ifeval"], verdicts["ifeval"], strict=True):
        ours = ifeval_verdict(row["row"], row["answer"])
        counts["ifeval"] += 2 * len(ours["kinds"])
        places = [(side, n) for side in ("strict", "loose") for n, a in enumerate(ours[side]) if a != theirs[side][n]]
        again = _asked("ifeval", [row] * REPEATS) if places else []
        for side, n in places:
            verdict, kind = theirs[side][n], ours["kinds"][n]
            repeated = sum(run[side][n] == verdict for run in again)
            why = why_ifeval(kind, row["row"]["kwargs"][n])
            if repeated < REPEATS:
                why = f"its verdict differs from run to run: the same in {repeated} of {REPEATS}"
            found["ifeval"].append({"key": row["row"]["key"], "side": side, "kind": kind, "ours": ours[side][n], "why": why})
    return {"counts": counts, "answers": evals_answers.ANSWERS, "disagreements": found}


def lm_eval_bars(part: dict[str, Any]) -> list[Bar]:
    """Nothing unexplained."""
    other = f"lm-eval's own scorer, {part['answers']} answers"
    return [_bar(f"7.lm_eval_{name}", name, other, part, name) for name in ("gsm8k", "ifeval")]


def why_gsm8k(answer: str, ours: bool, gold: float, said: str) -> str | None:
    """Which error of lm-eval's a disagreement is, if the answer shows one."""
    if not ours:
        return None
    if answer.count("####") > 1:
        return "it takes the first '####', and the answer corrects itself"
    try:
        if abs(float(said.replace(",", "").replace("$", "").rstrip(".")) - gold) < 1e-3:
            return "it compares texts, and the numbers are equal"
    except ValueError:
        pass
    if "####" not in answer and any(mark in answer.lower() for mark in ("answer is", "answer:", "\\boxed")):
        return "it takes the last number, and the answer names its own before it"
    return None


def why_ifeval(kind: str, given: dict[str, Any]) -> str | None:
    """Which error of the official code's a disagreement is, if the instruction shows one."""
    if kind == ONE_SIGN and not str(given.get("letter")).isalpha():
        return "the official code takes a sign for no letter and draws a random one in its place, another in each pass"
    return None


def _asked(task: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    python = os.environ.get("OPTIQ_LMEVAL_PYTHON")
    if python is None:
        raise SystemExit("OPTIQ_LMEVAL_PYTHON does not name a Python that has lm-eval[ifeval] (and NLTK_DATA with punkt_tab)")
    command = [python, str(WORKER), task]
    alone = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, env=alone, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return list(json.loads(done.stdout))


def _bar(name: str, task: str, other: str, part: dict[str, Any], key: str) -> Bar:
    rows = part["disagreements"][key]
    unexplained = sum(row["why"] is None for row in rows)
    told = f"{part['counts'][key]} verdicts, {len(rows)} disagree, {len(rows) - unexplained} shown to be the other side's error"
    return Bar(name, f"{task}'s scorer against {other}: disagreements without an explanation", unexplained, "", 0, "<=", told)
