"""`optiq models`: the reference models with size, score and best use, and whether they fit this machine; offline."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from optiq.events import Events

if TYPE_CHECKING:
    from optiq.models.reference import Reference

EXAMPLE = """\
example:
  optiq models
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace, events: Events) -> int:
    """Print one row per model: id, size in GB (1e9 bytes), GSM8K in percent, thinking by default, best use, whether it fits."""
    from optiq.cli.output import show, table
    from optiq.files import size_text
    from optiq.kernels.memory import usable_bytes
    from optiq.models.reference import REFERENCES, ROOM_BYTES

    memory = usable_bytes()
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
