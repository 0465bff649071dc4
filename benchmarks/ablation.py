"""What each stage of `optiq convert` pays, on *dev*, at the bytes of stock uniform 4-bit g64.

Stages, each on top of the one before: uniform round-to-nearest, exact allocation, weighted scale search, error feedback
(gptq), joint refit of scales and biases. Bar: at least 3 % less mean KL, or the stage is off by default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ours
import peers
from harness import Bar
from storage import storage

from optiq.measure.bootstrap import interval, ratio_interval

ARM = "uniform-4bit-g64"
LEAST_GAIN = 3.0  # percent
STAGES = {
    "allocation": ("--encoder", "rtn"),
    "search": ("--encoder", "search"),
    "gptq": ("--encoder", "gptq", "--no-refit"),
    "refit": ("--encoder", "gptq"),
}


def measure(rows: int) -> tuple[list[Bar], list[dict[str, Any]]]:
    """The gain of each stage in percent with its paired interval, and the models behind it."""
    like = peers.PEERS / ARM
    dev = ours.token_set("dev", rows)
    before = ours.divergence(like, dev).kl.mean(1)
    raw = [_row("uniform", like, before)]
    bars = []
    for name, options in STAGES.items():
        model_dir = ours.convert(f"stage-{name}", "--like", like, *options)
        after = ours.divergence(model_dir, dev).kl.mean(1)
        low, high = ratio_interval(after, before)
        gain = 100 * (1 - after.mean() / before.mean())
        bars.append(
            Bar(
                id=f"1.stage_{name}",
                what=f"KL on dev that {name} saves at the bytes of {ARM}",
                figure=float(gain),
                unit="%",
                bar=LEAST_GAIN,
                direction=">=",
                baseline=f"{raw[-1]['stage']}: KL {before.mean():.3g} nats/token",
            )
        )
        raw.append(_row(name, model_dir, after) | {"gain_percent_ci95": [100 * (1 - high), 100 * (1 - low)]})
        print(f"{bars[-1].id:28} {gain:.1f} %", flush=True)
        before = after
    return bars, raw


def _row(name: str, model_dir: Path, documents: np.ndarray) -> dict[str, Any]:
    kept = storage(model_dir)
    return {
        "stage": name,
        "file_bytes": kept.file_bytes,
        "bpw": kept.bpw,
        "kl_mean": float(documents.mean()),
        "kl_ci95": interval(documents),
    }
