"""Benchmarks of several parts that are measured one by one: each part is kept with its commit, so that `--only` renews one."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import harness
from harness import Bar

Part = tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[dict[str, Any]], list[Bar]]]


def parser_of(text: str | None, parts: Mapping[str, Part]) -> argparse.ArgumentParser:
    """The options that all such scripts have, under their docstring."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(parts), metavar="PART,…", help="parts to measure")
    parser.add_argument("--repeats", type=int, default=5, help="of each timed run")
    parser.add_argument("--dry", action="store_true", help="print the rows, write no result")
    return parser


def measure(script: str, parts: Mapping[str, Part], settings: argparse.Namespace) -> None:
    """Measure what was asked for; write the result where all parts are there, else print the rows of those that are.

    Args:
        script: names the result file, and `build/<script>` where parts are kept.
        parts: by name, how one is measured and the bars made of it.
        settings: the parsed options.
    """
    work = harness.BUILD / script
    work.mkdir(parents=True, exist_ok=True)
    for name in settings.only.split(","):
        if name not in parts:
            raise SystemExit(f"--only {name}: no such part, expected some of {', '.join(parts)}")
        now = {"commit": harness.commit(), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        (work / f"{name}.json").write_text(json.dumps(now | parts[name][0](settings)))
    found = {name: json.loads((work / f"{name}.json").read_text()) for name in parts if (work / f"{name}.json").is_file()}
    rows = [bar for name, part in found.items() for bar in parts[name][1](part)]
    if settings.dry or len(found) < len(parts):
        print(harness.table([vars(bar) | {"met": bar.met} for bar in rows]))
    else:
        harness.write_result(script, rows, found)
