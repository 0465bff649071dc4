"""A new user's first hour: a fresh clone, the README's two commands, then mistakes.

    python benchmarks/newcomer.py [--keep]

Clones the commit that is checked out into `build/newcomer`, runs `make demo` and `make test` there (each makes its
environment; that part is a download), then `optiq convert` with a path that does not exist, with an impossible budget,
and killed in the middle and run again. A check passes if the exit code is right and the message is one line without a
traceback. Out: `results/newcomer.json`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import harness
from harness import Bar

WORK = harness.BUILD / "newcomer"
CLONE = WORK / "clone"
KILL_SECONDS = 8.0


def variables() -> dict[str, str]:
    """The environment of a user who has no sources on the path and no virtual environment active."""
    dropped = {"PYTHONPATH", "VIRTUAL_ENV", "OPTIQ_BLAS", "OPTIQ_THREADS"}
    return {name: value for name, value in os.environ.items() if name not in dropped}


def shell(name: str, *words: object) -> tuple[int, float, str]:
    """Exit code, wall time and what one command printed, in the clone."""
    start = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in words], cwd=CLONE, env=variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = done.stdout.decode(errors="replace")
    (WORK / f"{name}.log").write_text(text)
    return done.returncode, time.perf_counter() - start, text


def installed() -> Path:
    """The `optiq` command that the make targets installed."""
    found = sorted(CLONE.glob("*/bin/optiq")) + sorted(CLONE.glob(".*/bin/optiq"))
    if not found:
        raise SystemExit(f"{CLONE}: the make targets left no */bin/optiq")
    return found[0]


def mistake(name: str, *words: object) -> dict[str, Any]:
    """One wrong command: exit code 2, one line that says why, no traceback, nothing left behind."""
    out = CLONE / "wrong"
    code, _, text = shell(name, installed(), "convert", *words, "-o", out)
    errors = [line for line in text.splitlines() if "error" in line.lower()]
    passed = code == 2 and len(errors) == 1 and "Traceback" not in text and not out.exists()
    return {"check": name, "passed": passed, "exit_code": code, "last_line": text.strip().splitlines()[-1:]}


def killed_run() -> dict[str, Any]:
    """A conversion that is killed leaves no output; the same command then ends well."""
    out = CLONE / "killed"
    command = [str(installed()), "convert", "examples/tiny-qwen3.5", "--target-bpw", "4.5", "-o", str(out)]
    child = subprocess.Popen(
        command,
        cwd=CLONE,
        env=variables(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(KILL_SECONDS)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    absent = not out.exists()
    code, seconds, text = shell("killed", *command)
    return {
        "check": "killed",
        "passed": absent and code == 0 and (out / "config.json").exists(),
        "exit_code": code,
        "seconds": round(seconds, 1),
        "last_line": text.strip().splitlines()[-1:],
    }


def main() -> None:
    """Run the checks and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the clone on disk")
    args = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    subprocess.run(["git", "clone", "-q", harness.ROOT, CLONE], check=True)
    checks: list[dict[str, Any]] = []
    for target in ("demo", "test"):
        code, seconds, _ = shell(target, "make", target)
        checks.append({"check": f"make {target}", "passed": code == 0, "exit_code": code, "seconds": round(seconds, 1)})
    checks.append(mistake("wrong path", "no/such/model", "--target-bpw", 5))
    checks.append(mistake("wrong budget", "examples/tiny-qwen3.5", "--target-bpw", 0.5))
    checks.append(killed_run())
    passed = sum(check["passed"] for check in checks)
    what = "checks of a first hour that pass: two make targets, a wrong path, a wrong budget, a kill"
    bar = Bar("1.newcomer", what, float(passed), "", float(len(checks)), ">=", "a fresh clone")
    harness.write_result("newcomer", [bar], {"checks": checks})
    if not args.keep:
        shutil.rmtree(CLONE)


if __name__ == "__main__":
    main()
