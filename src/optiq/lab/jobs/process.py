"""Processes of jobs: started in sessions of their own, known by pid and time of birth, signalled as groups.

A job's process is no part of the workbench's: when that ends or is killed, the job goes on, and the next workbench finds it by
what is written here. POSIX only. Knows nothing of the queue.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from optiq.errors import ResourceError
from optiq.lab.ask import program


def start(words: Sequence[str], cwd: str, output: Path, events: Path) -> subprocess.Popen[bytes]:
    """Run ``optiq WORDS --events jsonl``, stdout and stderr appended to files.

    Raises:
        ResourceError: it could not be started.
    """
    try:
        with output.open("ab") as out, events.open("ab") as err:
            return subprocess.Popen(
                program([*words, "--events", "jsonl"]),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                start_new_session=True,
            )
    except OSError as error:
        raise ResourceError(f"the command could not be started in {cwd}: {error.strerror}; make room, then resume") from None


def born(pid: int) -> str:
    """When a process was born, in the system's own words; empty where there is none, or where it has ended unread."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] == "Z" else fields[19]  # proc(5): state, and starttime as the 20th after the name
    done = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, when = done.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else when.strip()


def alive(pid: int | None, birth: str) -> bool:
    """Whether that very process is there."""
    return pid is not None and birth != "" and born(pid) == birth


def tell(pid: int, birth: str, number: signal.Signals) -> None:
    """Send a signal to a job's process and to what it has started; nothing where it is gone."""
    if alive(pid, birth):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)
