"""What a launcher is: it turns a program and a policy into a command that runs it apart from everything else."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from optiq.sandbox.policy import Policy

NOBODY = 65534  # the user and the group that programs run as where the caller is root, and as what they see themselves


@dataclass(frozen=True)
class Launch:
    """A command to be run as it is.

    Args:
        argv: the command.
        environment: all of it.
        descriptors: open files that the command inherits by these numbers.
        folder: where it starts.
        as_nobody: whether it gives root's rights away, where the caller is root.
        first: the first process of the namespace of processes in which it runs programs, with which all others end; given the
            command's own number, and it gives none before that process is there. None where there is no such namespace.
    """

    argv: tuple[str, ...]
    environment: dict[str, str]
    descriptors: tuple[int, ...]
    folder: str = "/"
    as_nobody: bool = True
    first: Callable[[int], int | None] | None = None

    def identity(self) -> dict[str, Any]:
        """Arguments of `subprocess.Popen` for the user that it runs as."""
        return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if self.as_nobody and os.geteuid() == 0 else {}


class Launcher(Protocol):
    """One way to run a program apart."""

    name: str

    def launch(self, program: int, policy: Policy) -> AbstractContextManager[Launch]:
        """The command for the program in the open file `program`; what it needs lives as long as the context."""
        ...


@contextmanager
def held(content: bytes) -> Iterator[int]:
    """An open file without a name that holds these bytes; on Linux nobody can change it any more."""
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            yield file.fileno()
        return
    descriptor = os.memfd_create("optiq-sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


def environment(scratch: str) -> dict[str, str]:
    """The whole environment of a program: nothing of the caller's."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8", **threads}


def python_words(interpreter: str, program: int, policy: Policy) -> tuple[str, ...]:
    """The interpreter's command line: the limits, then the program; see `boot.py`."""
    limits = (math.ceil(policy.cpu_seconds), policy.memory_bytes, policy.processes, policy.file_bytes)
    return (interpreter, "-I", "-B", "-c", source("boot.py"), str(program), *(str(limit) for limit in limits))


def source(name: str) -> str:
    """The text of a file of this package that runs inside, where the package cannot be seen."""
    return resources.files("optiq.sandbox").joinpath(name).read_text()


def interpreters() -> Iterator[str]:
    """Pythons to try: this one, the one that it was made from, the system's."""
    base = getattr(sys, "_base_executable", None)
    for found in dict.fromkeys((sys.executable, base, shutil.which("python3", path="/usr/bin:/usr/local/bin"))):
        if found:
            yield found


def interpreter_folders(interpreter: str) -> list[Path]:
    """Folders that a Python needs besides the system's: its own and its base's; none that holds this user's home."""
    folders = {Path(interpreter).resolve().parent.parent}
    if interpreter == sys.executable:
        folders |= {Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)}
    return sorted(folder for folder in folders if not folder.is_relative_to("/usr") and not Path.home().is_relative_to(folder))


def system_folders() -> list[Path]:
    """Folders of programs and libraries."""
    return [path for path in map(Path, ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")) if path.exists()]


def children(pid: int) -> Iterator[int]:
    """The processes that a process started itself, as far as the system tells."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            yield from map(int, path.read_text().split())
        except OSError:
            continue
