"""The engine: many streams, a long prompt beside a stream, a second turn, what speculation saves.

    python benchmarks/engine.py [--only streams,gaps,turns,cancels,mtp] [--repeats 5] [--prompts 200]

Parts are kept below `build/engine` with their commit, so that `--only` renews one part. Give the machine nothing else to do.
Out: `results/engine.json` where all parts are there; with `--dry` the rows are printed and nothing is written.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import engine_load
import engine_mtp
import harness
import parts
from cpu_sides import uniform4


def mtp(settings: argparse.Namespace) -> dict[str, Any]:
    """Speculation with the embedded model's head, and with replayed acceptances on the 0.8B shapes."""
    return {"tiny": engine_mtp.tiny(settings.prompts), "replayed": engine_mtp.replayed(uniform4(), settings.repeats)}


def streams(settings: argparse.Namespace) -> dict[str, Any]:
    """Eight streams over one, and over llama.cpp's server."""
    return engine_load.streams(uniform4(), settings.repeats, settings.threads)


def gaps(settings: argparse.Namespace) -> dict[str, Any]:
    """A stream while a long prompt is read."""
    return engine_load.gaps(uniform4())


def turns(settings: argparse.Namespace) -> dict[str, Any]:
    """The first and the second turn of a long conversation."""
    return engine_load.turns(uniform4())


def cancels(settings: argparse.Namespace) -> dict[str, Any]:
    """What random cancels leave behind, on the embedded model."""
    return engine_load.cancels(harness.MODEL)


PARTS: dict[str, parts.Part] = {
    "streams": (streams, engine_load.streams_bars),
    "gaps": (gaps, engine_load.gaps_bars),
    "turns": (turns, engine_load.turns_bars),
    "cancels": (cancels, engine_load.cancels_bars),
    "mtp": (mtp, engine_mtp.bars),
}


def main() -> None:
    """Measure what was asked for; print the rows of all parts that are there."""
    parser = parts.parser_of(__doc__, PARTS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of llama.cpp's server")
    parser.add_argument("--prompts", type=int, default=200, help="chat prompts")
    parts.measure("engine", PARTS, parser.parse_args())


if __name__ == "__main__":
    main()
