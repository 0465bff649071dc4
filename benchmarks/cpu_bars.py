"""What `cpu.py` measured, held against its bars. In: the raw samples of a part, or None. Out: one `Bar` per requirement.

Figures are ratios of medians. A peer that comes in two quantizations is represented by the better one, case by case.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from harness import Bar, number
from storage import entries, entry_bytes

DEPTHS, PROMPTS = (0, 4096, 16384), (128, 512, 4096)
SHAPES = ((512, 2048, 2048), (4096, 1024, 3584))
DTYPES = {"bfloat16": "bf16", "float32": "f32"}
LEAST = 1.0  # times the peer
BANDWIDTH_PERCENT, DENSE_PERCENT = 60.0, 70.0
STOCK_DECODE, STOCK_PREFILL = 40.0, 100.0
LOSS_NATS = 1e-3
NOT_MEASURED = "not measured"

Raw = dict[str, Any] | None
median = statistics.median


def weight_bytes(model_dir: Path) -> int:
    """Bytes of weights that a decoded token reads: all of them, the embedding table as the tied head."""
    return sum(entry_bytes(entry) for name, entry in entries(model_dir).items() if "vision" not in name)


def decode(raw: Raw) -> list[Bar]:
    """Weight bytes per second beside llama.cpp's, and the share of the memory bandwidth, at each depth."""
    bars = []
    for depth in DEPTHS:
        row = _row(raw, "depth", depth)
        ratio = share = None
        beside = read = NOT_MEASURED
        if raw and row:
            own = median(row["ours"]) * raw["weight_bytes"]
            theirs = {name: median(found) * raw["llama"]["bytes"][name] for name, found in row["llama"].items()}
            best = max(theirs, key=lambda name: theirs[name])
            ratio = own / theirs[best]
            beside = f"llama.cpp {best}: {_rate(row['llama'][best])}, {raw['llama']['bytes'][best] / 1e6:.0f} MB; ours " + (
                f"{_rate(row['ours'])}, {raw['weight_bytes'] / 1e6:.0f} MB"
            )
            per_token = raw["weight_bytes"] + row["state_bytes"] + row["cache_bytes"]
            share = 100 * per_token * median(row["ours"]) / (1e9 * median(row["bandwidth"]))
            read = f"{per_token / 1e6:.0f} MB per token; reading runs at {median(row['bandwidth']):.1f} GB/s"
        slug = _thousands(depth)
        what = f"decode at 4.5 bits per weight after {depth} tokens"
        bars += [
            Bar(f"2.decode_{slug}", f"{what}: weight bytes per second over llama.cpp's", ratio, "x", LEAST, ">=", beside),
            Bar(f"2.bandwidth_{slug}", f"{what}: share of the bandwidth", share, "%", BANDWIDTH_PERCENT, ">=", read),
        ]
    return bars


def prefill(raw: Raw) -> list[Bar]:
    """Prompt tokens per second over llama.cpp's."""
    bars = []
    for prompt in PROMPTS:
        row, ratio, beside = _row(raw, "prompt", prompt), None, NOT_MEASURED
        if row:
            best = max(row["llama"], key=lambda name: median(row["llama"][name]))
            ratio = median(row["ours"]) / median(row["llama"][best])
            beside = f"llama.cpp {best}: {_rate(row['llama'][best])}; ours {_rate(row['ours'])}"
        what = f"prefill of {prompt} tokens: tokens per second over llama.cpp's"
        bars.append(Bar(f"2.prefill_{_thousands(prompt)}", what, ratio, "x", LEAST, ">=", beside))
    return bars


def stock(raw: Raw) -> list[Bar]:
    """Tokens per second over stock mlx-lm's, on the same directory."""
    bars = []
    for kind, least in (("decode", STOCK_DECODE), ("prefill", STOCK_PREFILL)):
        ratio, beside = None, NOT_MEASURED
        if raw:
            own, theirs = (median(raw[side][kind]) for side in ("ours", "stock"))
            lengths = raw["new_tokens" if kind == "decode" else "prompt"]
            ratio = own / theirs
            beside = f"stock {number(theirs)} tok/s over {lengths['stock']} tokens; ours {number(own)} over {lengths['ours']}"
        bars.append(Bar(f"2.stock_{kind}", f"{kind}: tokens per second over stock mlx-lm's", ratio, "x", least, ">=", beside))
    return bars


def dense(raw: Raw) -> list[Bar]:
    """Operations per second of dense products as a share of torch's."""
    bars = []
    for shape in SHAPES:
        for dtype, short in DTYPES.items():
            rows = [row for row in (raw or {"rows": []})["rows"] if tuple(row["shape"]) == shape and row["dtype"] == dtype]
            share, beside = None, NOT_MEASURED
            if rows:
                own, theirs = median(rows[0]["ours"]), median(rows[0]["torch"])
                share, beside = 100 * own / theirs, f"torch {theirs / 1e9:.0f} GF/s, ours {own / 1e9:.0f}"
            size = "x".join(map(str, shape))
            what = f"{short} product {size}: operations per second, of torch's"
            bars.append(Bar(f"2.dense_{short}_{size}", what, share, "%", DENSE_PERCENT, ">=", beside))
    return bars


def train(raw: Raw) -> list[Bar]:
    """Speed of a training step over torch's, and the difference of the losses."""
    ratio = difference = None
    beside = losses = NOT_MEASURED
    if raw:
        own, theirs = (median(sample["seconds"] for sample in raw[side]) for side in ("ours", "torch"))
        ratio, beside = theirs / own, f"transformers on torch {theirs:.2f} s, ours {own:.2f} s"
        mine, other = (raw[side][0]["loss"] for side in ("ours", "torch"))
        difference, losses = abs(mine - other), f"{other:.4f} nats per token in transformers"
    what = "forward and backward of the embedded model, float32, 8 x 512"
    return [
        Bar("2.train", f"{what}: speed over transformers on torch", ratio, "x", LEAST, ">=", beside),
        Bar("2.train_loss", f"{what}: difference of the losses", difference, "nats", LOSS_NATS, "<=", losses),
    ]


def _row(raw: Raw, key: str, value: int) -> dict[str, Any] | None:
    return next((row for row in (raw or {"rows": []})["rows"] if row[key] == value), None)


def _rate(samples: list[float]) -> str:
    return f"{number(median(samples))} tok/s"


def _thousands(count: int) -> str:
    return f"{count // 1024}k" if count >= 1024 else str(count)
