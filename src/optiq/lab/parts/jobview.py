"""A job as pages show it: state, command, stages with bars, remarks, and what one can do with it; renewed while it lives."""

from __future__ import annotations

import time
from collections.abc import Callable

from nicegui import ui

from optiq.errors import OptiqError
from optiq.lab.jobs.job import ALIVE, OPEN, RESUMABLE, SERVER, Job, State
from optiq.lab.jobs.log import Log, Stage
from optiq.lab.jobs.queue import Queue
from optiq.lab.parts.command import CommandBox
from optiq.lab.parts.elements import box, button, folded, heading, note, say, words
from optiq.lab.text import line, plain

RENEW_S = 0.4
SHOWN_REMARKS = 200
SIGNS = {
    State.QUEUED: "waits",
    State.RUNNING: "runs",
    State.PAUSED: "paused",
    State.DONE: "done",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
    State.INTERRUPTED: "interrupted",
}


def sign(job: Job) -> str:
    """A job's state in a word; who ends a server has not cancelled anything."""
    return "stopped" if job.kind == SERVER and job.state is State.CANCELLED else SIGNS[job.state]


class JobView:
    """One job, live.

    Args:
        queue: where it is.
        number: its id.
        ended: called once when the page sees it end well, for what comes after.
        level: of its heading.
    """

    def __init__(self, queue: Queue, number: int, ended: Callable[[Job, Log], None] | None = None, level: int = 3) -> None:
        self._queue, self._number, self._ended = queue, number, ended
        self._seen: tuple[object, ...] = ()
        job = queue.store.get(number)
        self._was_open = job.state in OPEN
        with ui.element("article").classes("job"):
            with box("spread"):
                heading(job.title, level)
                self._head = box("bar")
            CommandBox(job.words)
            self._body = box("stack")
            with folded("Log", open_=job.state is State.FAILED) as self._log_fold:
                lines = ui.element("pre").classes("log").props('tabindex="0" role="region" aria-label="log"')
            with lines:
                self._lines = words("", "code")
        self._renew()
        if job.state is not State.DONE:  # one that ended early may be resumed
            ui.timer(RENEW_S, self._renew)

    def _renew(self) -> None:
        try:
            job = self._queue.store.get(self._number)
        except OptiqError:
            return
        log = self._queue.log(self._number)
        seen = (job.state, log.heard, job.problem)
        if seen == self._seen:
            return
        if not self._seen or self._seen[0] != job.state:
            self._head.clear()
            with self._head:
                _state(job)
                controls(self._queue, job)
        self._seen = seen
        self._body.clear()
        with self._body:
            progress(job, log)
        self._lines.set_text(tail(log))
        self._log_fold.set_visibility(bool(log.remarks))
        if self._was_open and job.state is State.DONE and self._ended is not None:
            self._ended(job, log)
        self._was_open = job.state in OPEN


def _state(job: Job) -> None:
    words(sign(job), "span", f"state state-{job.state}").props('role="status"')


def controls(queue: Queue, job: Job) -> None:
    """Buttons for what can be done with a job in its state."""

    def act(what: Callable[[int], None]) -> Callable[[], None]:
        def carry_out() -> None:
            try:
                what(job.id)
            except OptiqError as error:
                say(error, "negative")

        return carry_out

    if job.state is State.RUNNING and job.kind != SERVER:
        button("Pause", act(queue.pause), "quiet", label=f"Pause job {job.id}")
    if job.state is State.PAUSED or job.state in RESUMABLE:
        button("Resume", act(queue.resume), "quiet", label=f"Resume job {job.id}")
    if job.state in OPEN:
        button("Stop" if job.kind == SERVER else "Cancel", act(queue.cancel), "danger", label=f"Cancel job {job.id}")


def progress(job: Job, log: Log) -> None:
    """The reason of a failure, and the stages."""
    if job.problem:
        note(job.problem, "error" if job.state is State.FAILED else "warning")
    if job.state in ALIVE and not log.stages:
        words(f"started at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(job.started))}", classes="soft")
    if log.stages:
        with ui.element("ul").classes("stages"):
            for stage in log.stages:
                _stage(stage, job.state)


def _stage(stage: Stage, state: State) -> None:
    ended = stage.ok is not None
    mark = "✓" if stage.ok else "✗" if ended or state not in OPEN else "▸"
    total = f" of {stage.total:,}" if stage.total else ""
    amount = f"{stage.done:,}{total} {stage.unit}" if stage.done or stage.total else ""
    with ui.element("li"):
        with box("spread"):
            words(f"{mark} {line(stage.name)}", "span", "stage-name")
            words(f"{amount}  {stage.seconds:.1f} s" if ended else f"{amount}  {stage.note}", "span", "soft stage-note")
        bar = ui.element("progress").props('max="1"')
        bar.props["aria-label"] = line(stage.name)
        if stage.share is not None:
            bar.props["value"] = round(stage.share, 4)
        elif ended:
            bar.props["value"] = 0


def tail(log: Log) -> str:
    """The newest remarks as lines."""
    shown = list(log.remarks)[-SHOWN_REMARKS:]
    return plain("\n".join(f"{'' if kind in ('info', 'text') else kind + ': '}{text}" for kind, text in shown))
