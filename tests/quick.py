"""Conversions that take a second or two, and the logits of what they wrote: by our code and by unmodified mlx-lm.

The models are those of `random_models`, the texts a few rows of 32 tokens, the choices narrow.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream
from optiq.quantize.pipeline import Converted, convert

SETTINGS: dict[str, Any] = {
    "target_bpw": 5.6,
    "candidate_bits": (4, 8),
    "group_sizes": (32, 64),
    "calibration_samples": 2,
    "calibration_length": 32,
    "dev_rows": 1,
    "score_rows": 1,
}
TOKENS = np.random.default_rng(5).integers(3, 100, (1, 24)).astype(np.int32)


def converted(model: Path, output: Path, **changes: Any) -> Converted:
    """Convert with `SETTINGS`, changed where asked."""
    settings = {**SETTINGS, **changes}
    if "budget" in changes:
        del settings["target_bpw"]
    return convert(str(model), output, **settings)


def logits(path: Path) -> mx.array:
    """Float32 logits [1, L, V] on `TOKENS` from the dense values that a directory stands for, by our own code."""
    return Stream(Checkpoint.open(path), whole=True).tail(mx.zeros((*TOKENS.shape, 1)), mx.array(TOKENS))


def stock_logits(path: Path) -> mx.array:
    """The same by unmodified mlx-lm, from the codes themselves, with float32 activations."""
    from mlx_lm.utils import load_model

    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    return model(mx.array(TOKENS)).astype(mx.float32)


def assert_close(found: mx.array, expected: mx.array, tolerance: float = 1e-4, least_scale: float = 1e-30) -> None:
    """Equal up to a share of the largest magnitude (or of `least_scale`, where that is larger), and finite."""
    assert found.shape == expected.shape
    found, expected = np.array(found, np.float64), np.array(expected, np.float64)
    assert np.isfinite(found).all() and np.isfinite(expected).all()
    scale = max(np.abs(expected).max(), least_scale)
    worst = np.abs(found - expected).max() / scale
    assert worst <= tolerance, f"largest difference {worst:.2e} of the largest magnitude {scale:.3g}"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
