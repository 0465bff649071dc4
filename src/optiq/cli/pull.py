"""`optiq pull ID`: download a model from the hub into the cache."""

from __future__ import annotations

import argparse

from optiq.events import Events

EXAMPLE = """\
example:
  optiq pull Qwen/Qwen3.5-0.8B
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="ID", help="hub id, owner/name")
    parser.add_argument("--revision", help="branch, tag or commit (default: the main branch)")


def run(args: argparse.Namespace, events: Events) -> int:
    """Download what is missing and print where it lies."""
    from optiq.cli.output import show
    from optiq.files import size_text, tree_bytes
    from optiq.models import hub

    path = hub.resolve(args.model, args.revision, events)
    size = tree_bytes(path)
    show(args, events, {"model": args.model, "path": str(path), "bytes": size}, f"{path}  {size_text(size)}")
    return 0
