"""Where a conversion may read and write: whatever would destroy or mix up somebody's files is refused before any work."""

from __future__ import annotations

import re
from pathlib import Path

from optiq.errors import InputError
from optiq.models.places import check_apart
from optiq.quantize.settings import Settings

STAGE = re.compile(r"[a-z]+-[0-9a-f]{16}")


def work_path(settings: Settings) -> Path:
    """The directory of the stages' files."""
    output = settings.output.absolute()
    return settings.work or output.parent / f".{output.name}.work"


def check_source(settings: Settings, source: Path) -> None:
    """Refuse to write over the source, and to mix up source, output and work directory.

    Raises:
        InputError: says which two are in each other's way.
    """
    model, output, work = source.resolve(), settings.output.resolve(), work_path(settings).resolve()
    for what, place in (("-o", output), ("--work", work)):
        check_apart(what, place, model, "the model {} that is converted")
    if work == output or output in work.parents:
        raise InputError(f"--work {work} is inside the output {output}; choose a directory outside of it.")


def stage_files(work: Path) -> list[Path]:
    """The entries of a work directory that conversions made."""
    return [entry for entry in sorted(work.iterdir()) if STAGE.fullmatch(entry.name)]
