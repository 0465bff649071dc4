"""The queue at work: starts jobs one after the other, notices their ends, and carries out what a user asks of them.

`tick` does all of it and is called a few times per second; between two calls everything is in the store, so a workbench that is
killed loses nothing. One job computes at a time (two would share memory and cores); servers run beside the queue. Knows no pages.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optiq.errors import InputError, OptiqError
from optiq.lab.jobs import process
from optiq.lab.jobs.job import ALIVE, OPEN, RESUMABLE, SERVER, Job, State
from optiq.lab.jobs.log import ATTEMPT, Log
from optiq.lab.jobs.store import Store

KILL_AFTER_S = 30.0  # a command that was asked to end writes what it has; then it is ended


class Queue:
    """The jobs of one workbench.

    Args:
        store: where they are written down.
        changed: called with a job after its state has changed.
    """

    def __init__(self, store: Store, changed: Callable[[Job], None] = lambda job: None) -> None:
        self.store = store
        self.changed = changed
        self._own: dict[int, subprocess.Popen[bytes]] = {}
        self._logs: dict[int, Log] = {}
        self._ending: dict[int, float] = {}

    def add(self, title: str, words: Sequence[str], facts: Mapping[str, Any] | None = None) -> Job:
        """Queue a command.

        Raises:
            InputError: a word that no command line can carry.
        """
        job = self.store.add(title, words, os.getcwd(), facts or {})
        self.tick()
        return self.store.get(job.id)

    def log(self, number: int) -> Log:
        """What a job has said, read up to now."""
        if number not in self._logs:
            self._logs[number] = Log(self.store.get(number).events)
        log = self._logs[number]
        log.read()
        return log

    def cancel(self, number: int) -> None:
        """End a job; a running one is asked to, and killed if it does not."""
        job = self.store.get(number)
        if job.state is State.QUEUED:
            self._end(job, State.CANCELLED)
        elif job.state in ALIVE and job.pid is not None:
            process.tell(job.pid, job.born, signal.SIGTERM)
            process.tell(job.pid, job.born, signal.SIGCONT)
            self._ending.setdefault(number, time.monotonic())

    def pause(self, number: int) -> None:
        """Stop a running job where it is; its memory stays taken, and so does its turn."""
        job = self.store.get(number)
        if job.state is State.RUNNING and job.pid is not None and number not in self._ending:
            process.tell(job.pid, job.born, signal.SIGSTOP)
            self._put(job, State.PAUSED)

    def resume(self, number: int) -> None:
        """Let a paused job run on, or queue one again that ended early; commands go on where their files end."""
        job = self.store.get(number)
        if job.state is State.PAUSED and job.pid is not None:
            process.tell(job.pid, job.born, signal.SIGCONT)
            self._put(job, State.RUNNING)
        elif job.state in RESUMABLE:
            self.store.queue_again(number)
            self.changed(self.store.get(number))
            self.tick()

    def remove(self, number: int) -> None:
        """Forget a job that has ended, with its files of output; what it made stays.

        Raises:
            InputError: it has not ended.
        """
        job = self.store.get(number)
        if job.state in OPEN:
            raise InputError(f"job {number} is {job.state}; cancel it first")
        self.store.remove(number)
        self._logs.pop(number, None)
        shutil.rmtree(job.folder, ignore_errors=True)

    def tick(self) -> None:
        """Notice ends, then start what may start."""
        for job in self.store.among(ALIVE):
            self._watch(job)
        busy = any(job.kind != SERVER for job in self.store.among(ALIVE))
        for job in self.store.among([State.QUEUED]):
            if job.kind == SERVER or not busy:
                self._start(job)
                busy = busy or job.kind != SERVER

    def end_servers(self, wait_s: float = 10.0) -> list[Job]:
        """End what serves, as nobody is left to ask it; the other jobs, which go on, are returned."""
        for job in self.store.among(ALIVE):
            if job.kind == SERVER:
                self.cancel(job.id)
        limit = time.monotonic() + wait_s
        while time.monotonic() < limit and any(job.kind == SERVER for job in self.store.among(ALIVE)):
            time.sleep(0.05)
            for job in self.store.among(ALIVE):
                self._watch(job)
        return [job for job in self.store.among(ALIVE) if job.kind != SERVER]

    def _start(self, job: Job) -> None:
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            with job.events.open("ab") as events:
                events.write(ATTEMPT)
            child = process.start(job.words, job.cwd, job.output, job.events)
        except (OptiqError, OSError) as error:
            self._end(job, State.FAILED, str(error))
            return
        self._own[job.id] = child
        self.store.begun(job.id, child.pid, process.born(child.pid))
        self.changed(self.store.get(job.id))

    def _watch(self, job: Job) -> None:
        """See whether a job's process has ended, and how."""
        child = self._own.get(job.id)
        code = child.poll() if child is not None else None
        if code is None and process.alive(job.pid, job.born):
            asked = self._ending.get(job.id)
            if asked is not None and time.monotonic() - asked > KILL_AFTER_S and job.pid is not None:
                process.tell(job.pid, job.born, signal.SIGKILL)
            return
        cancelled = self._ending.pop(job.id, None) is not None
        self._own.pop(job.id, None)
        self._end(job, *outcome(self.log(job.id), code, cancelled))

    def _end(self, job: Job, state: State, problem: str = "") -> None:
        self.store.ended(job.id, state, problem)
        self.changed(self.store.get(job.id))

    def _put(self, job: Job, state: State) -> None:
        self.store.put(job.id, state)
        self.changed(self.store.get(job.id))


def outcome(log: Log, code: int | None, cancelled: bool) -> tuple[State, str]:
    """How a job ended, and why.

    Args:
        log: all that it has said.
        code: its exit code as Python counts them (negative: a signal); None where another workbench had started it.
        cancelled: a user asked for its end.
    """
    if cancelled:
        return State.CANCELLED, ""
    if log.error is not None:
        kind, text = log.error.get("kind"), str(log.error.get("text") or "it failed")
        return (State.INTERRUPTED, "") if kind == "interrupt" else (State.FAILED, text)
    if code == 0 or (code is None and log.result is not None):
        return State.DONE, ""
    if code is None:
        return State.INTERRUPTED, "it ended while the workbench was not running; resume goes on where its files end"
    if code < 0:
        return State.FAILED, f"it was ended by {signal.Signals(-code).name}; {_last(log)}"
    return State.FAILED, f"it ended with exit code {code}; {_last(log)}"


def _last(log: Log) -> str:
    lines = log.last_lines(1)
    return f"its last line: {lines[-1]}" if lines else "it had said nothing"
