"""`optiq rm ID|DIR`: delete a model from the hub cache, or a model directory."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from optiq.errors import EXIT_OK, EXIT_USER, InputError
from optiq.events import Events
from optiq.files import user_path

if TYPE_CHECKING:
    from optiq.models.hub import Cached

EXAMPLE = """\
example:
  optiq rm Qwen/Qwen3.5-0.8B
  optiq rm out --yes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("models", metavar="ID|DIR", nargs="+", help="hub id in the cache, or model directory")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace, events: Events) -> int:
    """Look at all the names first, ask, then delete: a wrong name deletes nothing."""
    from optiq.cli.output import confirmed, show
    from optiq.files import size_text
    from optiq.models import hub

    known = {entry.name: entry for entry in hub.cached()}
    found = [_found(name, known) for name in args.models]
    total = sum(size for _, size, _ in found)
    names = ", ".join(name for name, _, _ in found)
    agreed = confirmed(f"Delete {names} ({size_text(total)})?", args.yes)
    if agreed is None:
        raise InputError(f"deleting {names} ({size_text(total)}) wants a confirmation: add --yes")
    if agreed:
        for _, _, remove in found:
            remove()
    data = {"removed": [name for name, _, _ in found] if agreed else [], "bytes": total if agreed else 0}
    show(args, events, data, f"deleted {names}: {size_text(total)} freed" if agreed else "nothing deleted")
    return EXIT_OK if agreed else EXIT_USER


def _found(name: str, known: dict[str, Cached]) -> tuple[str, int, Callable[[], None]]:
    """The thing behind a name: what to call it, its bytes, and how to delete it."""
    from optiq.files import tree_bytes
    from optiq.models import hub

    place = user_path(name)
    if not place.exists() and name in known:
        entry = known[name]
        return name, entry.bytes, lambda: hub.remove_cached(entry)
    if not place.exists():
        raise InputError(f"no directory and no cached model {name}; `optiq list` shows what is there")
    hub.check_removable(place)
    return name, tree_bytes(place), lambda: hub.remove_directory(place)
