"""Evaluation: gold and wrong answers, scorers beside others', runs that are killed, all six tasks on the embedded model.

    OPTIQ_LMEVAL_PYTHON=PYTHON NLTK_DATA=DIR python benchmarks/evals.py [--only scripted,golden,lm_eval,served,programs,...]

PYTHON has `lm-eval[api,ifeval]` and transformers, DIR holds NLTK's `tokenizers/punkt_tab`. Parts are kept below `build/evals`
with their commit, so that `--only` renews one part. Out: `results/evals.json` where all parts are there.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import evals_programs
import evals_scorers
import harness
import parts
import server_clients
from harness import Bar

from optiq.evals.data import Data
from optiq.evals.tasks import TASKS
from optiq.evals.tasks.hashhop import chains
from optiq.models.load import load, load_tokenizer
from optiq.serve.engine import Engine, EngineOptions

sys.path.insert(0, str(harness.ROOT / "tests"))
import gold
import lm_eval_task

DATA = harness.SHARED / "data" / "eval"
SAMPLES = 200
CHAINS = 2000
MINUTES = 10
SMALL = {"mmlu": 57, "gsm8k": 8, "ifeval": 8, "bfcl": 8, "hashhop": 4, "humaneval": 8}  # of each task in all six
KILLED = ("gsm8k", "ifeval")


def scripted(_: argparse.Namespace) -> dict[str, Any]:
    """Shares of right answers of a scripted engine, by task: gold, corrupted, and MMLU by chance."""
    tokenizer, data, programs = load_tokenizer(harness.MODEL), Data(DATA), evals_programs.programs()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in TASKS:
            task = gold.task_of(name, harness.SHARED, SAMPLES)
            says = dict(zip(("gold", "corrupted"), gold.scripts(harness.SHARED)[name], strict=True))
            says |= {"chance": gold.by_chance} if name == "mmlu" else {}
            for side, say in says.items():
                result = gold.scored(task, say, data, tokenizer, Path(scratch, name, side), programs)
                found.setdefault(name, {"samples": len(result.rows)})[side] = sum(result.correct) / len(result.rows)
    return {"tasks": found}


def scripted_bars(part: dict[str, Any]) -> list[Bar]:
    """All, none, and a quarter."""
    rows = []
    for name, found in part["tasks"].items():
        told = f"{found['samples']} samples through the engine's interface"
        rows.append(Bar(f"7.gold_{name}", f"{name}: gold answers that are right", 100 * found["gold"], "%", 100, ">=", told))
        rows.append(
            Bar(f"7.wrong_{name}", f"{name}: corrupted answers that are right", 100 * found["corrupted"], "%", 0, "<=", told)
        )
    chance = part["tasks"]["mmlu"]
    off = 100 * abs(chance["chance"] - 0.25)
    told = f"{chance['samples']} questions, {100 * chance['chance']:.1f} % right; the bar is two standard errors"
    limit = round(200 * (0.25 * 0.75 / chance["samples"]) ** 0.5, 1)
    rows.append(Bar("7.chance_mmlu", "mmlu: letters drawn at random, distance from 25 %", off, "points", limit, "<=", told))
    return rows


def served(_: argparse.Namespace) -> dict[str, Any]:
    """The guide's task of lm-eval through a server, beside an engine in this process."""
    with server_clients.server(harness.MODEL, "--memory-gb", 1) as running, tempfile.TemporaryDirectory() as scratch:
        url = f"http://127.0.0.1:{running.port}"
        rows = lm_eval_task.run(os.environ["OPTIQ_LMEVAL_PYTHON"], url, harness.MODEL, Path(scratch))
    loaded = load(harness.MODEL)
    engine = Engine(*loaded, EngineOptions(memory_bytes=1 << 30))
    return {"pairs": [pair[:2] for pair in lm_eval_task.pairs(rows, engine, loaded[1])]}


def served_bars(part: dict[str, Any]) -> list[Bar]:
    """The largest difference."""
    worst = max(abs(theirs - ours) for theirs, ours in part["pairs"])
    what = "lm-eval's log-likelihoods through the server (local-completions) against ours, largest difference"
    return [Bar("7.lm_eval_served", what, worst, "nats", 1e-6, "<=", f"{len(part['pairs'])} choices, embedded model")]


def hashhop(_: argparse.Namespace) -> dict[str, Any]:
    """Chains whose answer is not exactly one: followed in both directions, over seeds, hops and lengths."""
    wrong = 0
    for seed in range(CHAINS):
        draw = random.Random(seed)
        hops = 1 + seed % 6
        pairs, start, end = chains(draw, hops, draw.randint(1, 400))
        following, before = dict(pairs), {right: left for left, right in pairs}
        at, back = start, end
        for _ in range(hops):
            at, back = following.get(at, ""), before.get(back, "")
        unique = len(following) == len(pairs) == len(before)
        wrong += not (unique and at == end and back == start and end not in following)
    return {"chains": CHAINS, "wrong": wrong}


def hashhop_bars(part: dict[str, Any]) -> list[Bar]:
    """None."""
    what = "HashHop: chains without exactly one answer"
    return [Bar("7.hashhop", what, part["wrong"], "chains", 0, "<=", f"{part['chains']} seeds, 1 to 6 hops, up to 400 lines")]


def repeat(_: argparse.Namespace) -> dict[str, Any]:
    """The per-sample files of three runs: one request at a time, sixteen at a time, sixteen with kills."""
    place = harness.BUILD / "evals" / "repeat"
    shutil.rmtree(place, ignore_errors=True)
    options = ("--tasks", ",".join(KILLED), "--samples", 16, "--data", DATA)
    options += ("--option", "ifeval.max_tokens=96", "--option", "gsm8k.max_tokens=96", "--events", "quiet")
    runs = {"one": 1, "sixteen": 16}
    for name, rows in runs.items():
        harness.run(harness.command("eval", harness.MODEL, *options, "--rows", rows, "-o", place / name), place / f"{name}.log")
    command = harness.command("eval", harness.MODEL, *options, "--rows", 16, "-o", place / "killed")
    kills = sum(_killed_once(command, place / "killed" / "model" / f"{task}.part") for task in KILLED)
    harness.run(command, place / "killed.log")
    files = {name: [(place / name / "model" / f"{task}.jsonl").read_bytes() for task in KILLED] for name in (*runs, "killed")}
    differing = sum(files[name][n] != files["one"][n] for name in files for n in range(len(KILLED)))
    return {"differing": differing, "files": len(files) * len(KILLED), "kills": kills}


def _killed_once(command: list[str], part: Path) -> bool:
    """Start a run and kill it once some samples of a task are on the disk; whether it was killed."""
    child = subprocess.Popen(command, cwd=harness.ROOT, env=harness.environment(), stdout=subprocess.DEVNULL)
    while child.poll() is None:
        if part.is_file() and part.read_bytes().count(b"\n") > 3:
            child.send_signal(signal.SIGKILL)
            child.wait()
            return True
        time.sleep(0.01)
    return False


def repeat_bars(part: dict[str, Any]) -> list[Bar]:
    """No byte differs, and the kills happened."""
    told = f"{part['files']} files: 1 request at a time, 16, and 16 with {part['kills']} kills"
    return [
        Bar(
            "7.repeat",
            "per-sample files that differ between batch sizes and after kills",
            part["differing"],
            "files",
            0,
            "<=",
            told,
        ),
        Bar("7.repeat_kills", "runs that were killed in the middle of a task and went on", part["kills"], "", 2, ">=", told),
    ]


def six(_: argparse.Namespace) -> dict[str, Any]:
    """All six tasks on the embedded model."""
    place = harness.BUILD / "evals" / "six"
    shutil.rmtree(place, ignore_errors=True)
    words = [word for name, count in SMALL.items() for word in ("--option", f"{name}.count={count}")]
    run = harness.run(harness.command("eval", harness.MODEL, "--data", DATA, *words, "-o", place), place.with_suffix(".log"))
    lines = {path.stem: path.read_text().count("\n") - 1 for path in (place / "model").glob("*.jsonl")}
    return {"seconds": run.seconds, "peak_bytes": run.peak_bytes, "samples": lines}


def six_bars(part: dict[str, Any]) -> list[Bar]:
    """Under ten minutes, and all six there."""
    told = ", ".join(f"{name} {count}" for name, count in part["samples"].items())
    return [
        Bar("7.six_seconds", "optiq eval, all six tasks on the embedded model", part["seconds"], "s", 60 * MINUTES, "<=", told),
        Bar("7.six_tasks", "tasks in that run", len(part["samples"]), "", 6, ">=", told),
    ]


PARTS: dict[str, parts.Part] = {
    "scripted": (scripted, scripted_bars),
    "golden": (evals_scorers.golden, evals_scorers.golden_bars),
    "lm_eval": (evals_scorers.lm_eval, evals_scorers.lm_eval_bars),
    "served": (served, served_bars),
    "programs": (evals_programs.measure, evals_programs.bars),
    "hashhop": (hashhop, hashhop_bars),
    "repeat": (repeat, repeat_bars),
    "six": (six, six_bars),
}


if __name__ == "__main__":
    parts.measure("evals", PARTS, parts.parser_of(__doc__, PARTS).parse_args())
