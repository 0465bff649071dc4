"""Time to start: `optiq --help`, the default tests, `make demo`.

    python benchmarks/startup.py [--only help,tests,demo]

The environment exists already (making it is a download). `--help` is timed as a user types it, the installed command
where there is one. Out: `results/startup.json`; rows that were left out keep their last figure.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

import harness
from harness import Bar

WORK = harness.BUILD / "startup"
REPEATS = 10
HELP_SECONDS, TESTS_SECONDS, DEMO_SECONDS = 0.3, 300.0, 180.0


def help_seconds() -> tuple[Bar, list[float]]:
    """Median wall time of `optiq --help` over ten runs after one that warms the file cache."""
    installed = Path(sys.executable).with_name("optiq")
    command = [installed, "--help"] if installed.exists() else harness.command("--help")
    times = [harness.run(command, WORK / "help.log").seconds for _ in range(REPEATS + 1)][1:]
    median = statistics.median(times)
    what = f"optiq --help, median of {REPEATS}"
    return Bar("1.help", what, median, "s", HELP_SECONDS, "<=", f"slowest {max(times):.3f} s"), times


def make_seconds(target: str, id: str, what: str, most: float) -> tuple[Bar, list[float]]:
    """Wall time of one make target in the checkout."""
    done = harness.run([shutil.which("make") or "make", target], WORK / f"{target}.log")
    baseline = f"{harness.os.cpu_count()} cores"
    return Bar(id, what, done.seconds, "s", most, "<=", baseline), [done.seconds]


def main() -> None:
    """Measure what was asked for and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="help,tests,demo", help="comma-separated")
    args = parser.parse_args()
    wanted = set(args.only.split(","))
    last = harness.read_results().get("startup", {"bars": [], "raw": {}})
    kept = {row["id"]: harness.Bar(**{k: v for k, v in row.items() if k != "met"}) for row in last["bars"]}
    raw = last["raw"]
    tasks = {
        "help": ("1.help", help_seconds),
        "tests": ("1.tests", lambda: make_seconds("test", "1.tests", "the default tests", TESTS_SECONDS)),
        "demo": ("1.demo", lambda: make_seconds("demo", "1.demo", "make demo, environment present", DEMO_SECONDS)),
    }
    for name, (id, measure) in tasks.items():
        if name in wanted:
            kept[id], raw[name] = measure()
    harness.write_result("startup", list(kept.values()), raw)


if __name__ == "__main__":
    main()
