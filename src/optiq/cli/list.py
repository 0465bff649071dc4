"""`optiq list [DIR ...]`: the models in the hub cache and in the given folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from optiq.errors import InputError, OptiqError
from optiq.events import Events
from optiq.files import user_path

EXAMPLE = """\
example:
  optiq list
  optiq list models/ out
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dirs", metavar="DIR", nargs="*", help="a model directory, or a folder of them")
    parser.add_argument("--dir", metavar="DIR", dest="more", action="append", default=[], help="the same, as an option")


def run(args: argparse.Namespace, events: Events) -> int:
    """Print one row per model: name, size in GB (1e9 bytes), bits per weight, kind, path."""
    from optiq.cli.output import show, table
    from optiq.files import tree_bytes
    from optiq.models import hub

    rows = [_row(entry.name, entry.path, entry.bytes) for entry in hub.cached()]
    rows += [_row(str(path), path, tree_bytes(path)) for name in args.dirs + args.more for path in _models_in(name)]
    cells = [[row["name"], f"{row['bytes'] / 1e9:.3f}", _bits_text(row["bpw"]), row["kind"], row["path"]] for row in rows]
    text = table(["name", "GB", "bits", "kind", "path"], cells, right=(1, 2)) if rows else "no models found"
    show(args, events, {"models": rows}, text)
    return 0


def _bits_text(bpw: float | None) -> str:
    return "" if bpw is None else f"{bpw:.2f}"


def _models_in(name: str) -> list[Path]:
    root = user_path(name)
    if not root.is_dir():
        raise InputError(f"no such directory: {name}")
    if (root / "config.json").is_file():
        return [root]
    return sorted(path.parent for path in root.glob("*/config.json"))


def _row(name: str, path: Path, size_bytes: int) -> dict[str, Any]:
    """What one line says of a model; one that cannot be read is listed as broken with the reason."""
    from optiq.models.inspect import inspect

    row: dict[str, Any] = {"name": name, "path": str(path), "bytes": size_bytes, "bpw": None, "problem": None}
    try:
        report = inspect(path)
    except OptiqError as error:
        return {**row, "kind": "broken", "problem": str(error)}
    kind = "optiq" if report.metadata is not None else "mlx" if report.quantized else "checkpoint"
    return {**row, "kind": kind, "bpw": round(report.bpw or report.file_bpw, 3), "architecture": report.architecture}
