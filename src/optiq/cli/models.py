"""`optiq models`: the reference models, offline, or those of the hub for a text; and whether they fit this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from optiq.events import Events

if TYPE_CHECKING:
    from optiq.models.reference import Reference

EXAMPLE = """\
examples:
  optiq models
  optiq models --search qwen3.5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("--search", metavar="TEXT", help="ask the hub for models whose names have TEXT")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many of them")


def run(args: argparse.Namespace, events: Events) -> int:
    """Print one row per model: id, size in GB (1e9 bytes), GSM8K in percent, thinking by default, best use, whether it fits."""
    from optiq.cli.output import show, table
    from optiq.files import size_text
    from optiq.kernels.memory import usable_bytes
    from optiq.models.reference import REFERENCES, ROOM_BYTES

    memory = usable_bytes()
    if args.search is not None:
        _search(args, events, memory)
        return 0
    rows = [_row(model, memory) for model in REFERENCES]
    cells = [
        [
            row["id"],
            f"{row['size_bytes'] / 1e9:.1f}",
            f"{row['gsm8k']:.1f}",
            "yes" if row["thinks"] else "no",
            row["best_for"],
            "fits" if row["fits"] else f"needs {size_text(row['needed_bytes'])}",
        ]
        for row in rows
    ]
    text = table(["model", "GB", "GSM8K", "thinks", "best for", "here"], cells, right=(1, 2))
    text += (
        f"\n\nThis machine: {size_text(memory)} for a model. Needed are its size and {size_text(ROOM_BYTES)} for the process and "
        "16k tokens.\nSizes and GSM8K (%) are those that the makers of these files publish. `optiq pull MODEL` downloads one."
    )
    show(args, events, {"memory_bytes": memory, "room_bytes": ROOM_BYTES, "models": rows}, text)
    return 0


def _search(args: argparse.Namespace, events: Events, memory: int) -> None:
    """Print what the hub has; sizes are those of the weights, and so unknown where the hub has not read the files."""
    from optiq.cli.output import show, table
    from optiq.files import size_text
    from optiq.models.hub import search
    from optiq.models.reference import ROOM_BYTES

    rows = []
    for model in search(args.search, args.limit):
        needed = None if model.bytes is None else model.bytes + ROOM_BYTES
        row = {"id": model.name, "size_bytes": model.bytes, "downloads": model.downloads, "needed_bytes": needed}
        rows.append(row | {"fits": None if needed is None else needed <= memory})
    cells = [
        [
            row["id"],
            "-" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e9:.1f}",
            f"{row['downloads']:,}",
            "-" if row["fits"] is None else "fits" if row["fits"] else f"needs {size_text(row['needed_bytes'])}",
        ]
        for row in rows
    ]
    text = table(["model", "GB", "downloads", "here"], cells, right=(1, 2)) if rows else f"no model for {args.search!r}"
    show(args, events, {"memory_bytes": memory, "room_bytes": ROOM_BYTES, "models": rows}, text)


def _row(model: Reference, memory: int) -> dict[str, Any]:
    from optiq.models.families import FAMILIES

    return {
        "id": model.id,
        "family": model.family,
        "size_bytes": model.size_bytes,
        "gsm8k": model.gsm8k,
        "thinks": FAMILIES[model.family].thinks,
        "best_for": model.best_for,
        "needed_bytes": model.needed_bytes,
        "fits": model.needed_bytes <= memory,
    }
