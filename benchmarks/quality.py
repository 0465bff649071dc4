"""KL per byte: ours against every peer at the peer's own bytes, on text that no choice has seen.

    python benchmarks/quality.py [--only GLOB] [--no-ablation] [--rows 12] [--samples 24]

For each arm that `peers.py` builds, `optiq convert --like ARM` makes ours of the same bytes; both are measured on the
*score* set with dequantized weights and float32 activations (`optiq.measure.divergence`; `referee.py`, stock mlx-lm
alone, repeats a part of it). A bar is met if the upper end of the paired 95 % bootstrap interval over documents of
mean KL(ours) / mean KL(arm) is within it. Also here: the bytes, the round trip, the ablation of the stages on *dev*
(`ablation.py`) and the picture. Out: `results/quality.json`, `pictures/kl_over_bytes.{png,svg}`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import ablation
import harness
import numpy as np
import ours
import peers
import referee
from harness import Bar
from picture import draw
from storage import Storage, storage

from optiq.measure.bootstrap import interval, ratio_interval
from optiq.measure.divergence import Divergence
from optiq.measure.tokens import Tokens

UNIFORM_UP_TO_45 = 0.35  # bars of KL(ours) / KL(arm), by the arm's kind and bits per weight
UP_TO_55 = 0.5
ABOVE = 0.65
REFEREE_ARM = "uniform-4bit-g64"
REFEREE_ROWS = 6  # one document per domain: stock mlx-lm runs Gated DeltaNet step by step


def bar_of(peer: peers.Peer, bpw: float) -> float:
    """The bar of an arm: 0.35 for uniform arms up to 4.5 bpw, 0.5 for others up to 5.5, 0.65 above."""
    rounded = round(bpw, 3)
    if peer.slug.startswith("uniform") and rounded <= 4.5:
        return UNIFORM_UP_TO_45
    return UP_TO_55 if rounded <= 5.5 else ABOVE


def summary(values: Divergence, kept: Storage) -> dict[str, Any]:
    """Sizes, and mean KL with interval, quantiles, top-1 agreement with interval, mean by domain."""
    found = values.summary()
    return {
        "file_bytes": kept.file_bytes,
        "bpw": kept.bpw,
        "side_bytes": kept.side_bytes,
        "kl_mean": found["mean"],
        "kl_ci95": found["ci95"],
        "kl_median": found["median"],
        "kl_p95": found["p95"],
        "kl_p99": found["p99"],
        "top1": found["top1"],
        "top1_ci95": interval(values.same.mean(1)),
        "kl_by_domain": found["by_domain"],
    }


def compare(peer: peers.Peer, score: Tokens) -> tuple[Bar, dict[str, Any]]:
    """One arm against ours: the bar's row and everything behind it."""
    like = peers.PEERS / peer.name
    mine = ours.convert(f"ours-{peer.name}", "--like", like)
    their_kl, our_kl = ours.divergence(like, score), ours.divergence(mine, score)
    a, b = our_kl.kl.mean(1), their_kl.kl.mean(1)
    like_size = storage(like)
    ratio, span = float(a.mean() / b.mean()), ratio_interval(a, b)
    row = Bar(
        id=f"1.kl_over_{peer.slug}",
        what=f"KL of ours over {peer.what} ({like_size.bpw:.2f} bpw) at its bytes",
        figure=ratio,
        unit="x",
        bar=bar_of(peer, like_size.bpw),
        direction="<=",
        baseline=f"KL {b.mean():.3g} nats/token",
        interval=(span[0], span[1]),
    )
    raw = {
        "arm": peer.name,
        "what": peer.what,
        "build": json.loads((peers.PEERS / f"{peer.name}.json").read_text()),
        "ratio": ratio,
        "ratio_ci95": span,
        "theirs": summary(their_kl, like_size),
        "ours": summary(our_kl, storage(mine)) | {"predicted_kl": ours.predicted(mine)},
    }
    print(f"{row.id:28} {ratio:.3f} [{span[0]:.3f}, {span[1]:.3f}]", flush=True)
    return row, raw


def byte_bars(arms: list[dict[str, Any]]) -> list[Bar]:
    """Two rows: ours never larger than the arm, and the budget used."""
    ratios = [arm["ours"]["file_bytes"] / arm["theirs"]["file_bytes"] for arm in arms]
    baseline = f"{len(arms)} arms"
    return [
        Bar("1.like_bytes_most", "bytes of ours over the arm's, largest", max(ratios), "x", 1.0, "<=", baseline),
        Bar("1.like_bytes_least", "bytes of ours over the arm's, smallest", min(ratios), "x", 0.995, ">=", baseline),
    ]


def refereed(score: Tokens) -> dict[str, Any]:
    """Mean KL of one arm and of ours on some documents, by ours and by stock mlx-lm."""
    step = max(1, len(score.ids) // REFEREE_ROWS)
    sides = {"theirs": peers.PEERS / REFEREE_ARM, "ours": ours.WORK / f"ours-{REFEREE_ARM}"}
    found: dict[str, Any] = {"arm": REFEREE_ARM, "documents": len(score.ids[::step])}
    for side, model_dir in sides.items():
        stock = referee.divergence(harness.MODEL, model_dir, score.ids[::step], ours.WORK)
        found[side] = {
            "stock_mlx_lm": float(stock.kl.mean()),
            "optiq": float(ours.divergence(model_dir, score).kl[::step].mean()),
        }
    return found


def main() -> None:
    """Measure the arms, the ablation and the round trip; write the result and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="arms to measure, a glob; a part is printed and not written")
    parser.add_argument("--rows", type=int, default=12, help="documents of 512 tokens per domain")
    parser.add_argument("--samples", type=int, default=24, help="mlx-optiq's --n-calibration")
    parser.add_argument("--no-ablation", action="store_true", help="leave the stages out (nothing is written)")
    args = parser.parse_args()
    arms = peers.ensure(args.only, args.samples)
    score = ours.token_set("score", args.rows)
    bars: list[Bar] = []
    raw: list[dict[str, Any]] = []
    for peer in arms:
        row, record = compare(peer, score)
        bars.append(row)
        raw.append(record)
    bars += byte_bars(raw)
    if args.only != "*" or args.no_ablation:
        print(harness.table([vars(bar) | {"met": bar.met} for bar in bars]))
        return
    stage_bars, stages = ablation.measure(args.rows)
    bars += [*stage_bars, ours.round_trip(ours.WORK / f"ours-{REFEREE_ARM}", score.ids[:2])]
    text = {"set": "score", "documents": len(score.ids), "tokens": int(np.size(score.ids)), "sha256": score.sha256}
    about = {"text": text, "ours_options": " ".join(map(str, ours.CALIBRATION))}
    harness.write_result("quality", bars, about | {"arms": raw, "ablation": stages, "referee": refereed(score)})
    draw(raw, harness.PICTURES / "kl_over_bytes")


if __name__ == "__main__":
    main()
