"""Conversions that are killed: nothing half-written is ever visible, and the next run ends with the same bytes.

Each run is the real command line in its own process; it is killed when a file of a certain stage has appeared in its work
directory, so that the moments are those that matter and not those that a clock happens to give.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import quick
import random_models

SOURCE = Path(__file__).resolve().parents[2] / "src"
OPTIONS = "--target-bpw 5.6 --candidate-bits 4,8 --group-sizes 32,64 --calibration-samples 1 --calibration-length 32"
MOMENTS = {  # what to wait for, as a pattern in the work directory
    "between the blocks of the backward pass": "statistics-*/hidden/gradient-1.npy",
    "in the middle of the encoding": "encode-*/model.layers.1.mlp.up_proj.safetensors",
    "after the last code, before the measurement": "encode-*/lm_head.safetensors",
}


def command(model: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "optiq.cli", "convert", str(model), "-o", str(out), "--events", "plain", *OPTIONS.split()]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), "OPENBLAS_NUM_THREADS": "1", "OPTIQ_THREADS": "1"}


def run(model: Path, out: Path) -> None:
    subprocess.run(command(model, out), env=environment(), check=True, capture_output=True, timeout=200)


def kill_when(model: Path, out: Path, pattern: str) -> None:
    """Start a conversion and SIGKILL it as soon as a file fits the pattern."""
    work = out.parent / f".{out.name}.work"
    child = subprocess.Popen(command(model, out), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not next(work.glob(pattern), None):
            assert child.poll() is None, f"the conversion ended before {pattern} appeared"
            assert time.monotonic() < end, f"{pattern} did not appear within two minutes"
            time.sleep(0.002)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two blocks."""
    return random_models.write(tmp_path_factory.mktemp("model") / "llama", "llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of a run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole") / "converted"
    run(model, out)
    return quick.digests(out)


def test_killed_again_and_again_and_resumed_gives_the_same_bytes(model: Path, expected: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "converted"
    for pattern in MOMENTS.values():
        kill_when(model, out, pattern)
        assert not out.exists()
    run(model, out)
    assert quick.digests(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["converted"], "the work directory was left behind"


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_once_and_resumed_gives_the_same_bytes(model: Path, expected: dict[str, str], tmp_path: Path, moment: str) -> None:
    out = tmp_path / "converted"
    kill_when(model, out, MOMENTS[moment])
    run(model, out)
    assert quick.digests(out) == expected


@pytest.mark.slow
def test_two_uninterrupted_runs_give_the_same_bytes(model: Path, expected: dict[str, str], tmp_path: Path) -> None:
    run(model, tmp_path / "converted")
    assert quick.digests(tmp_path / "converted") == expected
