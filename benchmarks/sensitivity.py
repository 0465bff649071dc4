"""The `fisher` prediction against the truth: one tensor at a time rounded, the KL measured.

    python benchmarks/sensitivity.py [--rows 2]

Predictions come from one gradient pass over the calibration text; each tensor of the embedded model is then rounded to
nearest (3 and 4 bits, groups of 64) alone, and the KL measured on *dev*, text that the pass did not see. Bars: rank
correlation, median of predicted over measured, and the matrix products of both methods, counted from the shapes for
the default options and text. Out: `results/sensitivity.json`.
"""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path
from typing import Any

import harness
import mlx.core as mx
import numpy as np
import ours
from harness import Bar
from scipy.stats import spearmanr

from optiq.kernels.affine import BITS, GROUP_SIZES, Coded
from optiq.measure import sensitivity
from optiq.measure.statistics import gather, product_operations
from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream
from optiq.quantize.encoders import ENCODERS

WORK = harness.BUILD / "sensitivity"
WIDTHS, GROUP_SIZE = (4, 3), 64
CALIBRATION_ROWS = 12  # per domain
LEAST_TENSORS = 40
LEAST_RANK, MOST_FACTOR, MOST_SHARE = 0.9, 1.5, 1 / 20


def rounded(stream: Stream) -> sensitivity.Candidates:
    """Round to nearest at 3 and 4 bits with groups of 64, as `mx.quantize` does it."""
    dtype = stream.checkpoint.dtype

    def encode(weight: mx.array, bits: int, group_size: int, gram: mx.array | None) -> Coded:
        return ENCODERS["rtn"](weight, bits, group_size, dtype, gram)

    return sensitivity.Candidates(tuple(sorted(WIDTHS)), (GROUP_SIZE,), encode, False)


def pairs(rows: int) -> tuple[Stream, list[dict[str, Any]]]:
    """Predicted and measured damage of each tensor and width."""
    stream = Stream(Checkpoint.open(harness.MODEL))
    candidates = rounded(stream)
    work = WORK / ours.sources_digest(ours.MEASURING)[:16]
    calibration, dev = ours.token_set("calibration", CALIBRATION_ROWS), ours.token_set("dev", rows)
    statistics = gather(stream, calibration.ids, work / f"statistics-{calibration.sha256[:16]}")
    predicted = sensitivity.fisher(stream, statistics, candidates)
    measured = sensitivity.measured(stream, dev.ids, candidates, measured_folder(work, dev.sha256))
    found = []
    for left, right in zip(predicted, measured, strict=True):
        assert left.name == right.name and left.options == right.options
        for option, guess, truth in zip(left.options, left.damage, right.damage, strict=True):
            found.append({"tensor": left.name, "bits": option.bits, "predicted": guess, "measured": truth})
    return stream, found


def measured_folder(work: Path, tokens: str) -> Path:
    """Where the measured rows are kept."""
    folder = work / f"measured-{tokens[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def agreement(rows: list[dict[str, Any]], bits: int) -> list[Bar]:
    """Rank correlation and median factor at one width."""
    chosen = [row for row in rows if row["bits"] == bits]
    guess = np.array([row["predicted"] for row in chosen])
    truth = np.array([row["measured"] for row in chosen])
    if len(chosen) < LEAST_TENSORS:
        raise SystemExit(f"{len(chosen)} tensors at {bits} bits, expected at least {LEAST_TENSORS}")
    median = float(np.median(guess / np.maximum(truth, 1e-12)))
    what = f"fisher against measured one-at-a-time KL, {len(chosen)} tensors, {bits} bits g{GROUP_SIZE}"
    baseline = f"measured {truth.min():.1e} to {truth.max():.1e} nats"
    rank = float(spearmanr(guess, truth).statistic)
    factor = max(median, 1 / median)
    return [
        Bar(f"1.fisher_rank_{bits}bit", f"Spearman, {what}", rank, "", LEAST_RANK, ">=", baseline),
        Bar(
            f"1.fisher_factor_{bits}bit",
            f"median factor (predicted over measured {median:.2f}), {what}",
            factor,
            "x",
            MOST_FACTOR,
            "<=",
            baseline,
        ),
    ]


def operations(stream: Stream, tokens: int) -> tuple[Bar, dict[str, float]]:
    """Multiply-adds of both methods, default options; `kl` is counted as it runs here, from the tensor's block on.

    The forward pass of the `kl` method for a tensor in block i: every matrix of the blocks from i on, and the head.
    """
    default = sensitivity.Candidates(BITS, GROUP_SIZES, rounded(stream).encode, False)
    tensors = stream.topology.tensors
    looked_up = {t.name for t in tensors if t.kind == "embedding" and not stream.topology.tied}
    head = sum(prod(t.shape) for t in tensors if t.block is None and t.name not in looked_up)
    suffix = 0
    for tensor in tensors:
        first = tensor.block if tensor.block is not None else (0 if tensor.kind == "embedding" else stream.depth)
        after = sum(prod(t.shape) for t in tensors if t.block is not None and t.block >= first)
        suffix += len(default.options(tensor)) * tokens * (after + head)
    options = max(len(default.options(tensor)) for tensor in tensors)
    fisher = product_operations(stream, tokens, options)
    whole = sensitivity.kl_operations(stream, tokens, default)
    bar = Bar(
        id="1.fisher_operations",
        what=f"matrix products of fisher over those of kl, {len(tensors)} tensors, {options} options, same tokens",
        figure=fisher / suffix,
        unit="x",
        bar=MOST_SHARE,
        direction="<=",
        baseline=f"kl {suffix:.2e} multiply-adds from each tensor's block on",
    )
    return bar, {"fisher": fisher, "kl_from_block": suffix, "kl_whole_passes": whole, "tokens": tokens}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2, help="dev rows of 512 tokens per domain")
    args = parser.parse_args()
    stream, rows = pairs(args.rows)
    bars = [bar for bits in WIDTHS for bar in agreement(rows, bits)]
    count, raw = operations(stream, CALIBRATION_ROWS * 6 * ours.LENGTH)
    harness.write_result("sensitivity", [*bars, count], {"dev_rows": args.rows, "operations": raw, "tensors": rows})


if __name__ == "__main__":
    main()
