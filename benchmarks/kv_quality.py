"""KL of packed key/value caches at equal bytes per token: ours against TurboQuant and stock affine codes.

    python benchmarks/kv_quality.py [--rows 12]

On *score*, at 512 and 2,048 tokens, near 3 and 4 bits, as decoding sees it (`kv_arms.py`); the mean is over the second half of
each row, where most tokens are packed. Three comparisons each, with bytes of sinks, tail and means counted:

    turbo        TurboQuant as it is;                        ours in its bytes
    turbo_same   TurboQuant with our default sinks and tail; ours with the same, the same bytes
    affine       stock affine codes, groups of 64;           ours in its bytes

"In its bytes": sinks and tail are chosen on *dev*, widths by the exact solver from damages on *calibration*. The ablation is on
*dev*. A bar is met if the upper end of the paired 95 % bootstrap interval over documents of mean KL / mean KL is within it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import harness
import kv_arms
import mlx.core as mx
import numpy as np
from harness import Bar
from kv_arms import Arm, Reference, late, stored_bytes, uniform, within

from optiq.kernels import packed, rotation
from optiq.kv import sensitivity
from optiq.kv.recipe import Recipe, preset
from optiq.kv.rows import Statistics
from optiq.kv.sensitivity import LayerDamage
from optiq.measure.bootstrap import interval, ratio_interval
from optiq.models.parts import Parts

LENGTHS = (512, 2048)
WIDTHS = (3, 4)
OVER_TURBO, OVER_AFFINE = 0.8, 0.5
AROUND = ((0, 0), (2, 4), (4, 8), (4, 16), (4, 32), (4, 64))  # sinks and tail that are tried on dev
CALIBRATION = (4, 2048)  # rows and tokens


class Bench:
    """What every comparison needs: damages and statistics from calibration, text, references."""

    def __init__(self, parts: Parts, rows: int):
        self.parts, self.rows = parts, rows
        base = preset("best", 4)
        ids = kv_arms.calibration(*CALIBRATION)
        moments = sensitivity.gather(parts, ids, kv_arms.DTYPE)
        self.full: dict[int, Statistics] = {layer.index: moments[layer.index].statistics(layer) for layer in parts.layers}
        self.known = sensitivity.choose_statistics(parts, ids[0], base, 3, moments, kv_arms.DTYPE)
        self.found: list[LayerDamage] = sensitivity.measure(parts, ids, base, (2, 3, 4, 5, 6), moments, self.known, kv_arms.DTYPE)

    def reference(self, name: str, length: int) -> Reference:
        """Rows of a packaged set with full-precision caches."""
        return Reference.make(self.parts, kv_arms.text(name, length, self.rows).ids)

    def bytes(self, arm: Arm, length: int) -> float:
        """Bytes per token."""
        return stored_bytes(arm, self.found, length)

    def best_within(self, budget: float, dev: Reference) -> tuple[Arm, list[dict[str, Any]]]:
        """Ours in a budget, by KL on dev; and what was tried."""
        tried = []
        for sinks, tail in AROUND:
            arm = within(self.found, self.known, budget, dev.length, sinks, tail)
            if arm is not None:
                tried.append((float(late(dev.divergence(arm)).mean()), arm))
        told = [{"kl_dev": value} | about(arm) | {"bytes_per_token": self.bytes(arm, dev.length)} for value, arm in tried]
        return min(tried, key=lambda pair: pair[0])[1], told


def about(arm: Arm) -> dict[str, Any]:
    """An arm in a result file."""
    first = next(iter(arm.recipes.values()))
    return {
        "scheme": first.scheme,
        "sinks": first.sinks,
        "tail": first.tail,
        "scaling": first.scaling,
        "bits": {str(i): [r.k_bits, r.v_bits] for i, r in arm.recipes.items()},
        "statistics": {str(i): [n for n, v in vars(s).items() if v is not None] for i, s in arm.known.items()},
    }


def compare(bench: Bench, length: int) -> tuple[list[Bar], list[dict[str, Any]]]:
    """All comparisons at one length."""
    bars, raw = [], []
    dev, score = bench.reference("dev", length), bench.reference("score", length)
    for bits in WIDTHS:
        plain = {name: uniform(bench.parts, preset(name, bits)) for name in ("turbo", "affine")}
        same = replace(preset("turbo", bits), sinks=preset("best", bits).sinks, tail=preset("best", bits).tail)
        ours = uniform(bench.parts, preset("best", bits), bench.known)
        pairs: list[tuple[str, str, Arm, Arm, float, list[dict[str, Any]]]] = []
        for name, bar in (("turbo", OVER_TURBO), ("affine", OVER_AFFINE)):
            mine, tried = bench.best_within(bench.bytes(plain[name], length), dev)
            pairs.append((name, f"{name} {bits} bits", plain[name], mine, bar, tried))
        pairs.append(("turbo_same", f"turbo {bits} bits, our sinks and tail", uniform(bench.parts, same), ours, OVER_TURBO, []))
        for name, what, theirs, mine, bar, tried in pairs:
            row, record = judge(bench, score, f"3.kl_over_{name}_{length}_{bits}bit", what, theirs, mine, bar)
            bars.append(row)
            raw.append(record | {"length": length, "bits": bits, "tried_on_dev": tried})
    return bars, raw


def judge(bench: Bench, score: Reference, name: str, what: str, theirs: Arm, mine: Arm, bar: float) -> tuple[Bar, dict[str, Any]]:
    """One comparison on score."""
    sides = {"theirs": theirs, "ours": mine}
    values = {side: score.divergence(arm) for side, arm in sides.items()}
    a, b = late(values["ours"]), late(values["theirs"])
    span = ratio_interval(a, b)
    sizes = {side: bench.bytes(arm, score.length) for side, arm in sides.items()}
    row = Bar(
        id=name,
        what=f"KL of ours over {what}, {score.length} tokens ({sizes['ours']:.1f} and {sizes['theirs']:.1f} B/token)",
        figure=float(a.mean() / b.mean()),
        unit="x",
        bar=bar,
        direction="<=",
        baseline=f"KL {b.mean():.3g} nats/token",
        interval=(span[0], span[1]),
    )
    record: dict[str, Any] = {"id": name, "documents": len(a), "ratio": row.figure, "ratio_ci95": span}
    for side, arm in sides.items():
        half = late(values[side])
        record[side] = about(arm) | {
            "bytes_per_token": sizes[side],
            "kl_mean": float(half.mean()),
            "kl_ci95": interval(half),
            "kl_all_positions": float(values[side].mean()),
            "kl_median": float(np.median(values[side][:, score.length // 2 :])),
        }
    print(f"{name:34} {row.figure:.3f} [{span[0]:.3f}, {span[1]:.3f}]", flush=True)
    return row, record


@contextmanager
def no_rotation() -> Iterator[None]:
    """Definitions instead of native kernels, with the rotation left out."""
    with (
        mock.patch.object(rotation, "transform", lambda x: x.astype(mx.float32)),
        mock.patch.object(packed, "_native", lambda x: None),
    ):
        yield


def ablation(bench: Bench, bits: int, length: int = LENGTHS[0]) -> list[dict[str, Any]]:
    """On dev: the preset, and the preset with one thing changed."""
    dev, ours, parts = bench.reference("dev", length), preset("best", bits), bench.parts
    bare = replace(ours, scheme="turbo")  # without a mean, known or found
    full = bench.full

    def some(mean: bool, scale: bool, value: bool) -> dict[int, Statistics]:
        keep = {
            i: (s.key_mean if mean else None, s.key_scale if scale else None, s.value_mean if value else None)
            for i, s in full.items()
        }
        return {i: Statistics(*parts) for i, parts in keep.items()}

    def arm(recipe: Recipe, known: dict[int, Statistics] | None = None) -> Arm:
        return uniform(parts, recipe, known)

    budget = bench.bytes(arm(ours, bench.known), length)
    split = within(bench.found, bench.known, budget, length, ours.sinks, ours.tail)
    rows: list[tuple[str, Arm]] = [
        ("ours: what pays on calibration", arm(ours, bench.known)),
        ("no mean, no scale", arm(bare)),
        ("mean of the first keys", arm(ours)),
        ("key means", arm(ours, some(True, False, False))),
        ("key means and scales", arm(ours, some(True, True, False))),
        ("key means and scales, value means", arm(ours, some(True, True, True))),
        ("uniform codebook", arm(replace(ours, codebook="uniform"), bench.known)),
        ("scaling: norm", arm(replace(ours, scaling="norm"), bench.known)),
        ("scaling: fit", arm(replace(ours, scaling="fit"), bench.known)),
        ("scaling: exact", arm(replace(ours, scaling="exact"), bench.known)),
        ("no sinks", arm(replace(ours, sinks=0), bench.known)),
        ("no tail", arm(replace(ours, tail=0), bench.known)),
        ("tail 16", arm(replace(ours, tail=16), bench.known)),
        ("tail 128", arm(replace(ours, tail=128), bench.known)),
        ("another seed", arm(replace(ours, seed=7), bench.known)),
    ]
    rows += [("widths by the solver, same bytes", split)] if split else []
    found = [(name, dev.divergence(a), bench.bytes(a, length)) for name, a in rows]
    with no_rotation():
        found.append(("no rotation", dev.divergence(arm(replace(bare, seed=43))), budget))
    base = late(found[0][1])
    print(f"\nablation on dev, {bits} bits, {length} tokens, {len(base)} rows")
    out = []
    for name, values, size in found:
        half, span = late(values), ratio_interval(late(values), base)
        out.append(
            {
                "what": name,
                "bits": bits,
                "kl": float(half.mean()),
                "over_ours": float(half.mean() / base.mean()),
                "ci95": span,
                "bytes_per_token": size,
            }
        )
        print(
            f"  {name:38} KL {half.mean():.3e}  x {out[-1]['over_ours']:.3f} [{span[0]:.2f}, {span[1]:.2f}]  {size:.1f} B/token",
            flush=True,
        )
    return out


def referee(bench: Bench, bits: int = 3, length: int = 256) -> dict[str, float]:
    """KL of one pass and of real caches fed token by token, on the same rows."""
    ids, arm = kv_arms.text("dev", length, 1).ids, uniform(bench.parts, preset("best", bits), bench.known)
    with mock.patch.object(kv_arms, "DTYPE", mx.float32):
        once = Reference.make(bench.parts, ids).divergence(arm)
    steps = kv_arms.stepped(ids, arm)
    return {"one_pass": float(late(once).mean()), "token_by_token": float(late(steps).mean())}


def quality(rows: int = 12) -> tuple[list[Bar], dict[str, Any]]:
    """The bars, and what is behind them."""
    bars: list[Bar] = []
    arms: list[dict[str, Any]] = []
    with kv_arms.open_model() as parts:
        bench = Bench(parts, rows)
        for length in LENGTHS:
            found, raw = compare(bench, length)
            bars += found
            arms += raw
        stages = [row for bits in WIDTHS for row in ablation(bench, bits)]
        checked = referee(bench)
    return bars, {"arms": arms, "ablation": stages, "referee": checked}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=12, help="documents per domain")
    bars, raw = quality(parser.parse_args().rows)
    harness.write_result("kv_quality", bars, raw)


if __name__ == "__main__":
    main()
