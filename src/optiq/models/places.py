"""Where a model directory may be written: whatever would destroy somebody's files is refused before any work."""

from __future__ import annotations

from pathlib import Path

from optiq.errors import InputError


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


def check_apart(what: str, place: Path, other: Path, meaning: str) -> None:
    """Refuse to write into a place that is, or holds, something that is read.

    Args:
        what: the flag that named the place.
        place: the directory to write.
        other: what is read.
        meaning: what it is, for the message.

    Raises:
        InputError: names both.
    """
    found, read = place.resolve(), other.resolve()
    if found == read or found in read.parents:
        raise InputError(f"{what} {found} is or holds {meaning.format(read)}; choose another directory.")


def replaceable(path: Path) -> bool:
    """Whether a directory may be replaced: it is empty, or a model or a measured table is all that it looks like."""
    if not path.is_dir():
        return False
    if {entry.name for entry in path.iterdir()} <= {"sensitivity.json"}:
        return True
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))
