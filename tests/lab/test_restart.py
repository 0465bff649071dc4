"""The workbench is killed while a job runs: the job goes on without it, and what was killed too resumes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab_process import Lab, end_lab, start_lab, until
from optiq.lab.database import Database
from optiq.lab.jobs import process
from optiq.lab.jobs.job import Job, State
from optiq.lab.jobs.log import Log
from optiq.lab.jobs.store import Store

if TYPE_CHECKING:
    from conftest import Visit

pytestmark = pytest.mark.slow
LIMIT_MS = 600_000  # for a measurement on a busy machine


def _job(lab: Lab) -> Job:
    """The newest job as the disk has it."""
    database = Database(lab.data / "lab.sqlite")
    job = Store(database, lab.data / "jobs").all()[0]
    database.close()
    return job


def _stages(job: Job) -> list[str]:
    log = Log(job.events)
    log.read()
    return [stage.name for stage in log.stages]


@pytest.fixture
def start(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[[], Lab]]:
    """Starts workbenches on one directory; what a failed test leaves behind is ended."""
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    started: list[Lab] = []

    def begin() -> Lab:
        started.append(start_lab(tmp_path / "data", str(tiny_model.parent)))
        return started[-1]

    yield begin
    for lab in started:
        lab.process.kill()
        lab.process.wait()
    if started and (job := _job(started[0])).pid is not None:
        process.tell(job.pid, job.born, signal.SIGKILL)


def test_a_job_outlives_the_workbench_and_resumes_in_the_next(
    start: Callable[[], Lab], tiny_model: Path, visit: Callable[..., Visit]
) -> None:
    first = start()
    page = visit(first, f"/quantize?model={tiny_model}").page
    page.get_by_text("How it is measured and coded").click()
    page.get_by_label("Widths to choose from").fill("4,8")
    page.get_by_label("Calibration rows per domain").fill("2")
    page.get_by_role("button", name="Measure", exact=True).click()
    page.locator(".state", has_text="runs").wait_for()
    until(lambda: _job(first).state is State.RUNNING and "forward" in _stages(_job(first)), 600)
    pid = _job(first).pid
    assert pid is not None
    os.killpg(pid, signal.SIGSTOP)  # so that it cannot end before the next workbench looks
    first.process.kill()
    first.process.wait()

    second = start()
    page = visit(second, "/jobs").page
    page.locator(".state", has_text="runs").wait_for()
    assert _job(second).pid == pid
    second.process.kill()
    second.process.wait()
    os.killpg(pid, signal.SIGKILL)  # as when the machine goes down

    third = start()
    seen = visit(third, "/jobs")
    seen.page.locator("summary", has_text="interrupted").click()
    seen.page.get_by_text("it ended while the workbench was not running").wait_for()
    seen.page.get_by_role("button", name="Resume job 1").click()
    seen.page.locator("summary", has_text="Measure tiny-qwen3.5: done").wait_for(timeout=LIMIT_MS)
    seen.page.goto(f"{third.base}/quantize?model={tiny_model}")
    seen.page.get_by_role("slider").wait_for()
    assert _job(third).state is State.DONE and seen.outside == [] and seen.problems == []
    assert end_lab(third) == 0
