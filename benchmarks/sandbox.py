"""The sandbox: how long a program takes to start and end in each launcher, and what the tests of escapes say of each.

    python benchmarks/sandbox.py [--only start,kept] [--repeats 25]

Parts are kept below `build/sandbox` with their commit, so that `--only` renews one part. Give the machine nothing else to do.
Out: `results/sandbox.json` where both parts are there; with `--dry` the rows are printed and nothing is written.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from typing import Any
from xml.etree import ElementTree

import harness
import parts
from harness import Bar

from optiq.sandbox import Policy, Runner
from optiq.sandbox.runner import LAUNCHERS, _working

START_MS = 150.0
_CASE = re.compile(r"\[(?P<launcher>\w+)(-.*)?\]$")


def _runners() -> list[Runner]:
    """One runner for each launcher that works here."""
    return [found for kind in LAUNCHERS if kind.missing() is None for found in [_working(kind)[0]] if found is not None]


def start(settings: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a program that does nothing, by launcher, in turns so that what disturbs disturbs all."""
    runners = _runners()
    times: dict[str, list[float]] = {one.name: [] for one in runners}
    for _ in range(settings.repeats):
        for one in runners:
            found = one.run("pass", Policy(seconds=60))
            if found.code != 0:
                raise SystemExit(f"{one.name}: a program that does nothing ended with {found}; look into that first")
            times[one.name].append(found.seconds)
    return {"seconds": times}


def start_bars(found: dict[str, Any]) -> list[Bar]:
    """A row for each launcher."""
    what = "a program that does nothing, from the call to its outcome"
    return [
        Bar(f"7.sandbox_start_{name}", f"{what}, {name}", 1000 * statistics.median(times), "ms", START_MS, "<=", "the bar itself")
        for name, times in found["seconds"].items()
    ]


def kept(settings: argparse.Namespace) -> dict[str, Any]:
    """Outcomes of `tests/sandbox` by launcher."""
    folder = harness.BUILD / "sandbox"
    report = folder / "junit.xml"
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", "tests/sandbox")
    harness.run(command, folder / "pytest.log", check=False)
    ends = {one.name: Counter[str]() for one in _runners()}
    failed = []
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "")
        launcher = match["launcher"] if (match := _CASE.search(name)) else ""
        bad = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), None)
        if launcher in ends:
            ends[launcher][bad or "passed"] += 1
            failed += [name] if bad else []
    return {"ends": ends, "not_passed": failed}


def kept_bars(found: dict[str, Any]) -> list[Bar]:
    """A row for each launcher: all of its tests have to pass."""
    return [
        Bar(
            f"7.sandbox_kept_{name}",
            f"tests of escapes and limits passed, {name}",
            ends.get("passed", 0),
            "",
            sum(ends.values()),
            ">=",
            "",
        )
        for name, ends in found["ends"].items()
    ]


if __name__ == "__main__":
    PARTS: dict[str, parts.Part] = {"start": (start, start_bars), "kept": (kept, kept_bars)}
    options = parts.parser_of(__doc__, PARTS)
    options.set_defaults(repeats=25)
    parts.measure("sandbox", PARTS, options.parse_args())
