"""Where the workbench keeps things: folders below one directory, and the secret that its address carries."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from optiq import files
from optiq.errors import InputError, ResourceError

DEFAULT = Path("~/.optiq/lab")
FOLDERS = ("jobs", "models", "measured", "work", "adapters", "data", "evals", "kv", "compared")
TOKEN_BYTES = 24


@dataclass(frozen=True)
class Place:
    """The directory of a workbench; `folder` gives the parts of it, which exist."""

    root: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Place:
        """Make the folders where they are missing.

        Raises:
            ResourceError: it cannot be written.
        """
        root = Path(path).expanduser().absolute()
        try:
            for name in FOLDERS:
                (root / name).mkdir(parents=True, exist_ok=True)
            root.chmod(0o700)
        except OSError as error:
            raise ResourceError(f"cannot write {root}: {error.strerror}; choose another directory with --data") from None
        return cls(root)

    def claim(self) -> None:
        """Keep other workbenches out until this process ends, as two would start the same jobs.

        Raises:
            ResourceError: another one runs here.
        """
        held = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)  # closed, and so released, by the process's end
        if not files.lock(held):
            os.close(held)
            raise ResourceError(f"another workbench runs on {self.root}; use its page, or choose another --data")

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "lab.sqlite"

    def folder(self, name: str) -> Path:
        """One of `FOLDERS`."""
        return self.root / name

    def token(self) -> str:
        """The secret of this workbench, made once, readable by its owner alone; so open pages live through a restart."""
        file = self.root / "token"
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            found = file.read_text().strip()
            if len(found) < TOKEN_BYTES:
                raise InputError(f"{file} holds no token of this program; delete it, and a new one is made") from None
            return found
        token = secrets.token_urlsafe(TOKEN_BYTES)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(token)
        return token


def slug(name: str) -> str:
    """A name for a file or a folder out of any text: letters, digits, '.', '_', '-', at most 80."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return kept[:80].rstrip("-.") or "model"


def key_of(model: str) -> str:
    """A name for what belongs to one model alone, out of its path or hub id."""
    return f"{slug(Path(model).name)}-{hashlib.sha256(model.encode('utf-8', 'replace')).hexdigest()[:8]}"


def free_name(folder: Path, name: str, suffix: str = "", given: Container[str] = ()) -> Path:
    """A path in ``folder`` that nothing has: the name, else the name with -2, -3 …; a file's ``suffix`` comes after that.

    Args:
        given: paths that are spoken for, though nothing is there yet.
    """
    path, count = folder / f"{name}{suffix}", 1
    while path.exists() or str(path) in given:
        count += 1
        path = folder / f"{name}-{count}{suffix}"
    return path
