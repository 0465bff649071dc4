"""The parts of one running workbench, which every page is given. Knows no pages and no protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optiq.lab.database import Database, Preferences
from optiq.lab.jobs.job import OPEN, Job
from optiq.lab.jobs.queue import Queue
from optiq.lab.jobs.store import Store
from optiq.lab.library import Library
from optiq.lab.outputs import Outputs
from optiq.lab.place import Place

TICK_S = 0.25
MAKES_MODELS = ("convert", "pull", "rm", "lora")  # after these the disk holds other models


@dataclass
class Workbench:
    """Everything that lives as long as the process.

    Args:
        place: where files are.
        database: the SQLite file; parts that keep rows make their tables in it.
        queue: the jobs.
        library: the models.
        preferences: small choices of the user.
        outputs: names of what jobs will write.
    """

    place: Place
    database: Database
    queue: Queue
    library: Library
    preferences: Preferences
    outputs: Outputs
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def open(cls, data: Path, folders: Sequence[Path] = ()) -> Workbench:
        """Open a data directory, or make it.

        Raises:
            OptiqError: it cannot be used.
        """
        place = Place.open(data)
        place.claim()
        database = Database(place.database)
        own = [place.folder("models"), Path("optiq_output").absolute()]
        library = Library(list(dict.fromkeys([*own, *[folder.expanduser().absolute() for folder in folders]])))
        store = Store(database, place.folder("jobs"))
        bench = cls(place, database, Queue(store), library, Preferences(database), Outputs(place, store))
        bench.queue.changed = bench._changed
        return bench

    def _changed(self, job: Job) -> None:
        if job.kind in MAKES_MODELS and job.state not in OPEN:
            self.later(self.library.refresh())

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside everything else; nothing where no loop runs."""
        try:
            task = asyncio.get_running_loop().create_task(work)
        except RuntimeError:
            work.close()
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def keep_ticking(self) -> None:
        """Run the queue until cancelled."""
        while True:
            self.queue.tick()
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """Stop what was begun here; jobs go on by themselves."""
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
