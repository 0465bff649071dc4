"""Kills at random moments: a demo conversion that is killed and run again ends with the same bytes.

    python benchmarks/kills.py [--trials 20] [--seed 0]

One conversion runs to its end; its time and the hash of every file are the baseline. Each trial starts with nothing on
disk, kills the process group (SIGKILL) at a seeded random moment, checks that the output is absent or whole, runs the
same command again and compares every file. The trials so far are kept, so that this script can be interrupted too.
Out: `results/kills.json`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import harness
import ours
from harness import Bar

from optiq import files

WORK = harness.BUILD / "kills"
STATE = WORK / "trials.json"
OPTIONS = (
    "--target-bpw",
    5.0,
    "--candidate-bits",
    "4,8",
    "--calibration-samples",
    8,
    "--calibration-length",
    128,
)  # as `make demo` calls it
TRIALS = 20


def command(out: Path) -> list[str]:
    """The demo's conversion."""
    return harness.command("convert", harness.MODEL, *OPTIONS, "-o", out)


def start_clean(folder: Path) -> Path:
    """An empty folder, and in it the place of the output."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder / "converted"


def kill_after(out: Path, seconds: float, log: Path) -> bool:
    """Start the conversion and kill its process group after a time; false if it had ended by itself."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            command(out),
            cwd=harness.ROOT,
            env=harness.environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            child.wait(timeout=seconds)
            return False
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return True


def differences(expected: dict[str, str], out: Path) -> list[str]:
    """The files whose bytes differ or that only one side has."""
    found = harness.tree_digest(out)
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def trial(moment: float, expected: dict[str, str]) -> dict[str, Any]:
    """Kill at `moment` seconds, run again to the end, compare."""
    folder = WORK / "trial"
    out = start_clean(folder)
    log = WORK / "trial.log"
    killed = kill_after(out, moment, log)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or [""]
    half = out.exists() and bool(differences(expected, out))
    left = sorted(str(path.relative_to(folder)) for path in folder.iterdir())
    start = time.perf_counter()
    if not out.exists():  # a kill after the result was published leaves nothing to resume
        harness.run(command(out), WORK / "resumed.log")
    return {
        "killed_after_s": round(moment, 2),
        "killed": killed,
        "last_line": last[0][-120:],
        "left_on_disk": left,
        "half_written_output": half,
        "resumed_s": round(time.perf_counter() - start, 2),
        "different_files": differences(expected, out),
        "leftovers": sorted(str(path.relative_to(folder)) for path in folder.iterdir() if path != out),
    }


def started(seed: int) -> dict[str, Any]:
    """The uninterrupted conversion and the trials so far, of these sources and options; begun anew where they changed."""
    key = {"sources": ours.sources_digest(ours.CONVERTING), "options": [str(word) for word in OPTIONS], "seed": seed}
    if STATE.exists() and (state := files.read_json(STATE, "trials"))["key"] == key:
        return state
    whole = harness.run(command(start_clean(WORK / "whole")), WORK / "whole.log")
    return {"schema": 1, "key": key, "whole_seconds": whole.seconds, "trials": []}


def main() -> None:
    """Run the trials and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    state = started(args.seed)
    expected = harness.tree_digest(WORK / "whole" / "converted")
    rng = random.Random(args.seed)
    trials: list[dict[str, Any]] = state["trials"]
    moments = [rng.uniform(0.02, 0.98) * state["whole_seconds"] for _ in range(2 * args.trials)]
    for moment in moments[len(trials) :]:
        if sum(row["killed"] for row in trials) >= args.trials:
            break
        trials.append(trial(moment, expected))
        files.write_json(STATE, state)
        print(f"{len(trials):3} {trials[-1]}", flush=True)
    counted = [row for row in trials if row["killed"]]
    same = [row for row in counted if not row["different_files"] and not row["half_written_output"]]
    bar = Bar(
        id="1.kills_same_bytes",
        what="conversions killed at random moments that end with the same bytes when run again",
        figure=float(len(same)),
        unit="",
        bar=float(args.trials),
        direction=">=",
        baseline=f"of {len(counted)} kills; uninterrupted {state['whole_seconds']:.0f} s",
    )
    raw = {"seed": args.seed, "whole_seconds": round(state["whole_seconds"], 1), "files": expected, "trials": trials}
    harness.write_result("kills", [bar], raw)


if __name__ == "__main__":
    main()
