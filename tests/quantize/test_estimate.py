"""What a conversion is expected to take: nothing there is measured but one product, so its parts are compared with each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optiq.events import QUIET
from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream
from optiq.quantize import estimate
from optiq.quantize.settings import Settings
from optiq.quantize.stages import Job
from optiq.quantize.workspace import Workspace, text
from tiny_model import TINY


@pytest.fixture
def job(tmp_path: Path) -> Job:
    settings = Settings(str(TINY), tmp_path / "out", calibration_samples=2)
    checkpoint = Checkpoint.open(TINY)
    space = Workspace.open(settings, checkpoint)
    return Job(settings, checkpoint, checkpoint, Stream(checkpoint), text(settings, checkpoint), space, QUIET)


def test_what_costs_more_is_expected_to_take_longer(job: Job) -> None:
    def operations(**changes: object) -> float:
        return estimate.multiply_adds(replace(job, settings=replace(job.settings, **changes)))

    usual = operations()
    assert operations(sensitivity="kl") > usual > operations(sensitivity="static")
    assert usual > operations(refit=False) > operations(encoder="rtn")
    assert usual > operations(verify=False)
    assert usual > operations(candidate_bits=(4, 8))
    assert estimate.multiply_adds(replace(job, text=None)) < operations(encoder="rtn", verify=False)


def test_time_is_work_over_the_rate_of_a_product(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e9 < estimate.rate() < 1e15
    monkeypatch.setattr(estimate, "rate", lambda: 1e12)
    fast = estimate.seconds(job)
    monkeypatch.setattr(estimate, "rate", lambda: 1e11)
    constant = estimate.TENSOR_SECONDS * len(job.topology.tensors)
    assert estimate.seconds(job) - constant == pytest.approx(10 * (fast - constant))
