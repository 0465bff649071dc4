"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import optiq  # noqa: F401  before MLX, whose matrix products it can then make fast

# The small factorisations of the tests gain nothing from threads, and SciPy's own BLAS spins while it waits for them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The embedded model: a trained Qwen3.5 hybrid of 10 M parameters."""
    return ROOT / "examples" / "tiny-qwen3.5"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference data beside the checkout; tests that want it are skipped where it is absent."""
    place = Path(os.environ.get("OPTIQ_SHARED", ROOT.parent / "shared"))
    if not place.is_dir():
        pytest.skip(f"the reference data is not at {place} (set OPTIQ_SHARED)")
    return place
