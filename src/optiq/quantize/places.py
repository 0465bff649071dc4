"""Where a conversion may read and write: whatever would destroy or mix up somebody's files is refused before any work."""

from __future__ import annotations

import re
from pathlib import Path

from optiq.errors import InputError
from optiq.quantize.settings import Settings

STAGE = re.compile(r"[a-z]+-[0-9a-f]{16}")


def work_path(settings: Settings) -> Path:
    """The directory of the stages' files."""
    output = settings.output.absolute()
    return settings.work or output.parent / f".{output.name}.work"


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, or with ``overwrite`` one that is no model directory.

    Raises:
        InputError: says what is in the way.
    """
    try:
        there, link = path.exists(), path.is_symlink()
    except OSError as error:
        raise InputError(f"-o {path} cannot be a directory here: {error.strerror}; choose another -o.") from error
    if link:
        raise InputError(f"{path} is a link; give the directory itself as -o.")
    if not there:
        return
    if not overwrite:
        raise InputError(f"{path} exists already; choose another -o, or pass --overwrite to replace it.")
    if not replaceable(path):
        raise InputError(
            f"{path} is not a model directory (config.json beside *.safetensors), so --overwrite does not replace it; "
            "choose another -o, or move it away."
        )


def check_source(settings: Settings, source: Path) -> None:
    """Refuse to write over the source, and to mix up source, output and work directory.

    Raises:
        InputError: says which two are in each other's way.
    """
    model, output, work = source.resolve(), settings.output.resolve(), work_path(settings).resolve()
    for what, place in (("-o", output), ("--work", work)):
        if place == model or place in model.parents:
            raise InputError(f"{what} {place} is or holds the model {model} that is converted; choose another directory.")
    if work == output or output in work.parents:
        raise InputError(f"--work {work} is inside the output {output}; choose a directory outside of it.")


def replaceable(path: Path) -> bool:
    """Whether a directory may be replaced: it is empty, or a model or a measured table is all that it looks like."""
    if not path.is_dir():
        return False
    if {entry.name for entry in path.iterdir()} <= {"sensitivity.json"}:
        return True
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def stage_files(work: Path) -> list[Path]:
    """The entries of a work directory that conversions made."""
    return [entry for entry in sorted(work.iterdir()) if STAGE.fullmatch(entry.name)]
