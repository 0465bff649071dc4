"""The lower half of a page that makes jobs: the command, the button that starts it, and its jobs live while they are open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nicegui import ui

from optiq.errors import OptiqError
from optiq.lab.jobs.job import OPEN, Job, State
from optiq.lab.jobs.log import Log
from optiq.lab.jobs.queue import Queue
from optiq.lab.outputs import Output
from optiq.lab.parts.command import CommandBox
from optiq.lab.parts.elements import box, button, say
from optiq.lab.parts.jobview import JobView

RENEW_S = 0.5


@dataclass(frozen=True)
class Order:
    """A job to be made.

    Args:
        title: for people.
        words: the command.
        facts: what the page wants to find again.
        output: where it writes, kept as the fact of that name; None where the place is the command's own.
    """

    title: str
    words: list[str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    output: Output | None = None


class JobForm:
    """Command, start, live view.

    Args:
        queue: where jobs go.
        what: kind of job, kept in its facts; the page shows the open jobs of this kind, and the newest one that did not end well.
        compose: the job that the form above asks for.
        missing: what the form still lacks, in a sentence; empty where it is complete.
        start: what the button says.
        below: draws more into an open job's place.
        ended: called when the page sees a job end, well or not.
    """

    def __init__(
        self,
        queue: Queue,
        what: str,
        compose: Callable[[], Order],
        missing: Callable[[], str],
        start: str = "Start",
        below: Callable[[Job], None] = lambda job: None,
        ended: Callable[[Job, Log], None] = lambda job, log: None,
    ) -> None:
        self._queue, self._what, self._compose, self._missing = queue, what, compose, missing
        self._below, self._ended = below, ended
        self._shown: list[tuple[int, bool]] = []
        self._open: set[int] = set()  # as this page has last seen them
        self._command = CommandBox()
        self.show()
        button(start, self._start, "main")
        self._live = box("stack")
        self._renew()
        ui.timer(RENEW_S, self._renew)

    def show(self) -> None:
        """Show the command as the form is now, and why it does not write where one would think."""
        order = self._compose()
        self._command.show(order.words, order.output.remark if order.output else "")

    def _start(self) -> None:
        if problem := self._missing():
            say(problem, "warning")
            return
        order = self._compose()
        facts = {**order.facts, "what": self._what, **({"output": str(order.output.path)} if order.output else {})}
        try:
            job = self._queue.add(order.title, order.words, facts)
        except OptiqError as error:
            say(error, "negative")
            return
        say(f"job {job.id}: {order.title}")
        self._renew()

    def _renew(self) -> None:
        """Draw anew where jobs have come or gone; their views follow their progress by themselves."""
        mine = jobs_of(self._queue, self._what)
        open_ = [job for job in reversed(mine) if job.state in OPEN]
        last = [job for job in mine[:1] if job.state not in OPEN and job.state is not State.DONE]
        now = [(job.id, job.state in OPEN) for job in [*open_, *last]]
        if now == self._shown:
            return
        self._shown = now
        self.show()
        ended = self._ended_now(mine)
        self._live.clear()
        with self._live:
            for job in [*open_, *last]:
                JobView(self._queue, job.id)
                self._below(job)
        for job in ended:
            self._ended(job, self._queue.log(job.id))

    def _ended_now(self, mine: list[Job]) -> list[Job]:
        """Jobs that this page has seen open and that are not any more."""
        found = [job for job in mine if job.id in self._open and job.state not in OPEN]
        self._open = {job.id for job in mine if job.state in OPEN}
        return found


def jobs_of(queue: Queue, what: str) -> list[Job]:
    """Jobs of one kind, the newest first."""
    return [job for job in queue.store.all() if job.facts.get("what") == what]
