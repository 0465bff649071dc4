"""Jobs: real processes, their ends, and what is left when the workbench goes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optiq.errors import InputError
from optiq.lab.database import Database
from optiq.lab.jobs import process
from optiq.lab.jobs.job import Job, State
from optiq.lab.jobs.log import Log
from optiq.lab.jobs.queue import Queue, outcome
from optiq.lab.jobs.store import Store

# A stand-in for `optiq`, so that a job takes as long as its test: the first word says what to do.
PROGRAM = """
import json, os, signal, sys, time
def say(**event): print(json.dumps(event), file=sys.stderr, flush=True)
def stop(*_):
    say(type="error", kind="interrupt", text="interrupted; finished work is kept")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
what, rest = sys.argv[1], sys.argv[2:]
say(type="stage_start", stage="work", total=4, unit="parts")
say(type="advance", stage="work", done=1, total=4, unit="parts", note="first")
if what in ("long", "serve"): time.sleep(60)
if what == "until":
    while not os.path.exists(rest[0]): time.sleep(0.02)
if what == "bad": say(type="error", kind="input", text="no such model: x; give one that exists"); sys.exit(2)
if what == "crash": print("last words", file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGSEGV)
say(type="stage_end", stage="work", done=4, total=4, unit="parts", seconds=0.1, ok=True)
say(type="result", data={"n": 1}); print("done")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    monkeypatch.setattr(process, "program", lambda words: [sys.executable, str(file), *words])


@pytest.fixture
def open_queue(tmp_path: Path, stand_in: None) -> Iterator[Callable[[], Queue]]:
    """Opens workbenches' queues on the same files; ends what they leave running."""
    opened: list[Queue] = []

    def make() -> Queue:
        opened.append(Queue(Store(Database(tmp_path / "lab.sqlite"), tmp_path / "jobs")))
        return opened[-1]

    yield make
    for job in opened[-1].store.all() if opened else []:
        if job.pid is not None:
            process.tell(job.pid, job.born, signal.SIGKILL)


def _until(queue: Queue, number: int, *states: State) -> Job:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        queue.tick()
        job = queue.store.get(number)
        if job.state in states and (job.state is not State.RUNNING or queue.log(number).stages):
            return job
        time.sleep(0.02)
    raise AssertionError(f"job is {queue.store.get(number)}")


def test_a_job_runs_tells_its_stages_and_ends(open_queue: Callable[[], Queue]) -> None:
    queue = open_queue()
    changes: list[State] = []
    queue.changed = lambda job: changes.append(job.state)
    number = queue.add("Try", ["quick", "a b"], {"model": "m"}).id
    job = _until(queue, number, State.DONE)
    log = queue.log(number)
    assert job.command == "optiq quick 'a b'" and job.facts == {"model": "m"}
    assert [(stage.name, stage.ok, stage.share) for stage in log.stages] == [("work", True, 1.0)]
    assert log.result == {"n": 1} and job.output.read_text() == "done\n" and changes == [State.RUNNING, State.DONE]


def test_one_job_computes_at_a_time_and_servers_run_beside(open_queue: Callable[[], Queue]) -> None:
    queue = open_queue()
    first, second, server = (queue.add("Try", [word]).id for word in ("long", "quick", "serve"))
    _until(queue, server, State.RUNNING)
    assert [queue.store.get(number).state for number in (first, second)] == [State.RUNNING, State.QUEUED]
    queue.cancel(first)
    _until(queue, second, State.DONE)
    assert queue.end_servers() == [] and queue.store.get(server).state is State.CANCELLED


def test_errors_and_crashes_are_told_apart_and_resume(open_queue: Callable[[], Queue]) -> None:
    queue = open_queue()
    bad, crash = queue.add("Try", ["bad"]).id, queue.add("Try", ["crash"]).id
    assert _until(queue, bad, State.FAILED).problem == "no such model: x; give one that exists"
    assert _until(queue, crash, State.FAILED).problem == "it was ended by SIGSEGV; its last line: last words"
    queue.resume(bad)
    assert queue.store.get(bad).state in (State.QUEUED, State.RUNNING)
    _until(queue, bad, State.FAILED)


def test_a_paused_job_stands_still_and_goes_on(open_queue: Callable[[], Queue], tmp_path: Path) -> None:
    queue = open_queue()
    number = queue.add("Try", ["until", str(tmp_path / "go")]).id
    _until(queue, number, State.RUNNING)
    queue.pause(number)
    (tmp_path / "go").touch()
    time.sleep(0.3)
    queue.tick()
    assert queue.store.get(number).state is State.PAUSED and queue.log(number).result is None
    queue.resume(number)
    _until(queue, number, State.DONE)


def test_a_cancelled_job_may_write_what_it_has_and_resumes(open_queue: Callable[[], Queue]) -> None:
    queue = open_queue()
    number = queue.add("Try", ["long"]).id
    _until(queue, number, State.RUNNING)
    queue.pause(number)
    queue.cancel(number)
    job = _until(queue, number, State.CANCELLED)
    assert queue.log(number).last_lines(1) == ["interrupted; finished work is kept"] and job.pid is None


def test_a_job_outlives_the_workbench_and_the_next_one_sees_its_end(open_queue: Callable[[], Queue], tmp_path: Path) -> None:
    number = open_queue().add("Try", ["until", str(tmp_path / "go")]).id  # this queue is never asked again: as if killed
    queue = open_queue()
    assert _until(queue, number, State.RUNNING).pid is not None
    (tmp_path / "go").touch()
    _until(queue, number, State.DONE)


def test_a_job_whose_process_went_meanwhile_is_interrupted_and_resumes(open_queue: Callable[[], Queue], tmp_path: Path) -> None:
    first = open_queue()
    number = first.add("Try", ["until", str(tmp_path / "go")]).id
    pid = _until(first, number, State.RUNNING).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    queue = open_queue()
    job = _until(queue, number, State.INTERRUPTED)
    assert "while the workbench was not running" in job.problem
    (tmp_path / "go").touch()
    queue.resume(number)
    assert _until(queue, number, State.DONE).problem == ""


def test_a_process_number_used_again_is_not_taken_for_the_job() -> None:
    assert process.alive(os.getpid(), process.born(os.getpid()))
    assert not process.alive(os.getpid(), "long ago")
    assert not process.alive(None, "")


def test_only_ended_jobs_are_forgotten(open_queue: Callable[[], Queue]) -> None:
    queue = open_queue()
    number = queue.add("Try", ["long"]).id
    with pytest.raises(InputError, match=f"job {number} is running; cancel it first"):
        queue.remove(number)
    queue.cancel(number)
    folder = _until(queue, number, State.CANCELLED).folder
    queue.remove(number)
    assert not folder.exists() and queue.store.all() == []
    with pytest.raises(InputError, match="there is no job"):
        queue.store.get(number)


def test_words_that_no_command_line_carries_are_refused(open_queue: Callable[[], Queue]) -> None:
    with pytest.raises(InputError, match="cannot carry"):
        open_queue().add("Try", ["quick", "a\0b"])


def test_what_is_no_event_is_a_remark(tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_bytes(b'Traceback\n{"type": "advance", "stage": "never begun"}\n[1]\n{"type": "warning", "text": "\xff"}\n{"half')
    log = Log(file)
    assert log.read() and log.heard == 4
    assert [kind for kind, _ in log.remarks] == ["text", "text", "text"] or [kind for kind, _ in log.remarks][0] == "text"
    assert not log.read()


def test_the_end_of_a_job_is_read_from_what_it_said(tmp_path: Path) -> None:
    silent = Log(tmp_path / "none")
    assert outcome(silent, 0, False) == (State.DONE, "")
    assert outcome(silent, None, False)[0] is State.INTERRUPTED
    assert outcome(silent, 1, False) == (State.FAILED, "it ended with exit code 1; it had said nothing")
    assert outcome(silent, -9, True) == (State.CANCELLED, "")
