"""Where a job that is about to be made may write: a name that nothing on the disk has, and that no other job was given.

An output appears only when its job ends, so whatever waits, runs or can be resumed keeps its name until it leaves the jobs' list.
Knows nothing of commands and pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optiq.lab.jobs.job import OPEN, RESUMABLE
from optiq.lab.jobs.store import Store
from optiq.lab.place import Place, free_name


@dataclass(frozen=True)
class Output:
    """A free path; ``remark`` says why it has another name than the wished one, and is empty where it has that."""

    path: Path
    remark: str = ""


class Outputs:
    """Gives out paths below a workbench's directory.

    Args:
        place: the directory.
        store: the jobs; the ``output`` of their facts is what they were given.
    """

    def __init__(self, place: Place, store: Store) -> None:
        self._place, self._store = place, store

    def free(self, folder: str, name: str, suffix: str = "") -> Output:
        """A path that is nobody's: the name itself, else the name with -2, -3 ….

        Args:
            folder: one of `place.FOLDERS`.
            suffix: of a file, behind the name.
        """
        jobs = self._store.among((*OPEN, *RESUMABLE))
        given = {str(job.facts["output"]): job for job in jobs if job.facts.get("output")}
        path = free_name(self._place.folder(folder), name, suffix, given)
        wished = path.with_name(f"{name}{suffix}")
        if path == wished:
            return Output(path)
        holder = given.get(str(wished))
        why = f"belongs to job {holder.id}" if holder else "is there already"
        return Output(path, f"{wished.name} {why}, so this writes {path.name}.")
