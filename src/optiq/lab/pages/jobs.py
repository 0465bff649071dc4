"""The screen Jobs: what runs, what waits, what has ended, with everything that one can do to it."""

from __future__ import annotations

import time

from nicegui import ui

from optiq.errors import OptiqError
from optiq.lab.jobs.job import OPEN, Job
from optiq.lab.pages.frame import frame
from optiq.lab.parts.elements import box, button, folded, note, paragraph, say, section
from optiq.lab.parts.jobview import JobView, sign
from optiq.lab.text import line
from optiq.lab.workbench import Workbench

ABOUT = "Each job is one command. They run one after the other, go on when the workbench closes, and resume after a stop."
SHOWN = 50


def register(bench: Workbench) -> None:
    """Put the screen at its address."""

    @ui.page("/jobs")
    def jobs() -> None:
        with frame(bench, "Jobs", ABOUT):
            _lists(bench)


def _lists(bench: Workbench) -> None:
    seen: list[tuple[int, bool]] = []
    place = box("stack")

    def renew() -> None:
        jobs = bench.queue.store.all()
        now = [(job.id, job.state in OPEN) for job in jobs]
        if now == seen and place.default_slot.children:
            return
        seen[:] = now
        place.clear()
        with place:
            _open_jobs(bench, [job for job in reversed(jobs) if job.state in OPEN])
            _ended_jobs(bench, [job for job in jobs if job.state not in OPEN])

    renew()
    ui.timer(0.5, renew)


def _open_jobs(bench: Workbench, jobs: list[Job]) -> None:
    with section("Running and waiting"):
        if not jobs:
            paragraph("Nothing runs. The other screens start jobs.", "soft")
        for job in jobs:
            JobView(bench.queue, job.id)


def _ended_jobs(bench: Workbench, jobs: list[Job]) -> None:
    with section("Ended"):
        if not jobs:
            paragraph("Nothing yet.", "soft")
        for job in jobs[:SHOWN]:
            _ended_job(bench, job)
        if len(jobs) > SHOWN:
            note(f"{len(jobs) - SHOWN} older jobs are not shown")


def _ended_job(bench: Workbench, job: Job) -> None:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.ended or job.created))

    def forget() -> None:
        try:
            bench.queue.remove(job.id)
        except OptiqError as error:
            say(error, "negative")

    with folded(f"{job.id}. {line(job.title, 90)}: {sign(job)}, {when}") as outer:
        inside = box("stack")

    def fill() -> None:
        if inside.default_slot.children:
            return
        with inside:
            JobView(bench.queue, job.id)
            button("Remove from the list", forget, "danger", label=f"Remove job {job.id} from the list")

    outer.on("toggle", fill)
