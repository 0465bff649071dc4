"""What a program of strangers may use, and what became of it. Values only; knows no system."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optiq.errors import InputError


@dataclass(frozen=True)
class Policy:
    """The limits of one run; a program cannot widen them from inside.

    Args:
        seconds: by the clock, start-up included.
        cpu_seconds: of processor time, per process; whole seconds are what systems count, so it is rounded up.
        memory_bytes: address space of each process, and resident memory of all of them together.
        processes: processes and threads at once.
        file_bytes: of one file, and of all files in the scratch folder together.
        output_bytes: of standard output and of standard error, each.
        readable: files and folders besides the interpreter and the system's libraries.
        writable: folders besides the scratch folder, which is empty at the start and gone at the end.

    Raises:
        InputError: for a limit that is not positive or a path that does not exist.
    """

    seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 1 << 30
    processes: int = 16
    file_bytes: int = 16 << 20
    output_bytes: int = 1 << 20
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name in ("seconds", "cpu_seconds", "memory_bytes", "processes", "file_bytes", "output_bytes"):
            value = getattr(self, name)
            if not value > 0:
                raise InputError(f"sandbox limit {name} is {value}; expected a positive number")
        for path in (*self.readable, *self.writable):
            if not path.is_absolute() or not path.exists():
                raise InputError(f"sandbox path {path} does not exist or is not absolute; give existing absolute paths")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        code: the exit status, negative for a signal; None where the run was stopped.
        stdout, stderr: as far as the limit went; bytes that are not UTF-8 are replaced.
        seconds: by the clock.
        stopped: why the run was ended from outside: "time", "cpu", "memory", "output" or "cancelled"; None where it
            ended by itself.
    """

    code: int | None
    stdout: str
    stderr: str
    seconds: float
    stopped: str | None = None
