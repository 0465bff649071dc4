"""The key/value cache: distortion, bytes, quality, speed and memory.

    python benchmarks/kv.py [--only distortion,quality,decode,llama,peak,measure] [--repeats 5] [--threads N]

Distortion on random vectors; quality on *score* text with the embedded model (`kv_quality.py`); speed and memory on the
random checkpoint with the shapes of Qwen3.5-0.8B (`cpu_sides.uniform4`), caches filled with random vectors, sides taking
turns in one process; llama.cpp with 4-bit caches beside ours. Parts are kept below `build/kv` with their commit, as in
`cpu.py`. Give the machine nothing else to do. Out: `results/kv.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
import kv_quality
import peer_llama
from cpu_sides import Worker, uniform4
from harness import Bar

WORK = harness.BUILD / "kv"
SIDES = Path(__file__).with_name("kv_sides.py")
WIDTHS = (64, 128, 256)
LLOYD = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}  # of the variance: Max (1960), table I
VECTORS, LOUD, GAIN = 4000, 4, 20.0
DEPTHS = {1024: 0.98, 32768: 1.15, 65536: 1.3}
KINDS = ("fp16", "tq3", "best3", "best4")
LLAMA_DEPTH, NEW = 32768, 32
PEAK_TOKENS, PEAK_NEW = 16384, 64
MEASURE_LENGTH, MEASURE_SECONDS = 4096, 300.0


def distortion(settings: argparse.Namespace) -> dict[str, Any]:
    """Relative squared error of TurboQuant at each width and number of bits, plain vectors and loud channels."""
    import mlx.core as mx
    import numpy as np

    from optiq.kernels import codebook, packed, rotation

    rows = []
    rng = np.random.default_rng(0)
    for width in WIDTHS:
        for loud in (False, True):
            x = rng.standard_normal((1, 1, VECTORS, width), np.float32)
            if loud:
                x[..., rng.choice(width, LOUD, replace=False)] *= GAIN
            signs = rotation.signs(width, 42)[None]
            for bits in LLOYD:
                form = packed.Form(codebook.lloyd(bits), signs, signs, "norm")
                found = packed.unpack(packed.pack(mx.array(x), form), form)
                error = float(((np.array(found) - x) ** 2).sum() / (x**2).sum())
                rows.append({"width": width, "loud": loud, "bits": bits, "error": error})
    sizes = {bits: packed.packed_bytes(128, bits) for bits in LLOYD}
    return {"rows": rows, "bytes_at_128": sizes}


def distortion_bars(part: dict[str, Any]) -> list[Bar]:
    """One row per number of bits and kind of vectors: the worst width."""
    found = []
    for loud in (False, True):
        for bits, exact in LLOYD.items():
            rows = [row for row in part["rows"] if row["bits"] == bits and row["loud"] == loud]
            worst = max(rows, key=lambda row: row["error"])
            kind = f"{LOUD} channels {GAIN:g} times larger" if loud else "normal vectors"
            found.append(
                Bar(
                    id=f"3.distortion_{bits}bit{'_loud' if loud else ''}",
                    what=f"squared error over Lloyd-Max, TurboQuant {bits} bits, {kind}, d = 64, 128, 256",
                    figure=worst["error"] / exact,
                    unit="x",
                    bar=1.03,
                    direction="<=",
                    baseline=f"Lloyd-Max {exact}; worst at d = {worst['width']}",
                )
            )
    for bits, most, reference in ((3, 50, "the reference recipe: 56"), (4, 66, "16-bit: 256")):
        figure = float(part["bytes_at_128"][str(bits)])
        what = f"bytes of a TQ{bits} vector at head width 128, its scale included"
        found.append(Bar(f"3.bytes_tq{bits}", what, figure, "B", most, "<=", reference))
    return found


def decode(settings: argparse.Namespace) -> dict[str, Any]:
    """Seconds per token of each kind of cache at each depth."""
    rows = []
    for depth in DEPTHS:
        rows.append(side("decode", ",".join(KINDS), depth, settings, settings.repeats, NEW if depth < LLAMA_DEPTH else NEW // 2))
        print(f"  decode at {depth}: " + ", ".join(f"{k} {1e3 * v:.1f} ms" for k, v in rows[-1]["median"].items()), flush=True)
    return {"rows": rows}


def decode_bars(part: dict[str, Any]) -> list[Bar]:
    """Speed over the 16-bit cache."""
    found = []
    for row in part["rows"]:
        depth, medians = row["depth"], row["median"]
        for kind in KINDS[1:]:
            found.append(
                Bar(
                    id=f"3.decode_{kind}_{depth // 1024}k",
                    what=f"tokens per second over the 16-bit cache, {kind}, {depth} tokens",
                    figure=medians["fp16"] / medians[kind],
                    unit="x",
                    bar=DEPTHS[depth],
                    direction=">=",
                    baseline=f"16-bit {1 / medians['fp16']:.1f} tok/s, {row['cache_bytes']['fp16'] / 1e6:.0f} MB; "
                    f"{kind} {1 / medians[kind]:.1f} tok/s, {row['cache_bytes'][kind] / 1e6:.0f} MB",
                )
            )
    return found


def llama(settings: argparse.Namespace) -> dict[str, Any]:
    """llama.cpp with 4-bit caches and ours at the same depth, taking turns."""
    types = ("q4_0", "q4_0")
    found: dict[str, Any] = {"ours": [], "llama": {}, "flags": "-fa on -ctk q4_0 -ctv q4_0", "depth": LLAMA_DEPTH}
    with contextlib.ExitStack() as stack:
        peers = {}
        for name in peer_llama.QUANTIZATIONS:
            peers[name] = stack.enter_context(
                Worker(f"llama-{name}", settings.threads, peer_llama.worker(name, settings.threads, types))
            )
            peers[name].ask("fill", depth=LLAMA_DEPTH)
        for _ in range(settings.repeats):
            for name, peer in peers.items():
                found["llama"].setdefault(name, []).append(NEW / peer.ask("decode", tokens=NEW)["seconds"])
            ours = side("decode", "tq3,best4", LLAMA_DEPTH, settings, 1, NEW)
            found["ours"].append(ours["seconds_per_token"])
            print(f"  llama.cpp {found['llama']}; ours {ours['median']}", flush=True)
    return found


def llama_bars(part: dict[str, Any]) -> list[Bar]:
    """Speed over the better of llama.cpp's two."""
    name, best = max(((n, statistics.median(v)) for n, v in part["llama"].items()), key=lambda pair: pair[1])
    found = []
    for kind in ("tq3", "best4"):
        mine = 1 / statistics.median([x for run in part["ours"] for x in run[kind]])
        what = f"tokens per second at {part['depth']} tokens, {kind} over llama.cpp {part['flags']}"
        found.append(
            Bar(
                f"3.decode_{kind}_over_llama",
                what,
                mine / best,
                "x",
                1.0,
                ">=",
                f"llama.cpp {name} {best:.1f} tok/s; ours {mine:.1f}",
            )
        )
    return found


def peak(settings: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a long prompt and some tokens after it, each kind in a process of its own."""
    return {kind: side("peak", kind, PEAK_TOKENS, settings, PEAK_NEW) for kind in ("fp16", "tq4", "best4", "affine4")}


def peak_bars(part: dict[str, Any]) -> list[Bar]:
    """Below the 16-bit cache's peak."""
    full = part["fp16"]["peak_bytes"]
    return [
        Bar(
            id=f"3.peak_{kind}",
            what=f"peak resident size of {PEAK_TOKENS} prompt and {PEAK_NEW} decoded tokens over the 16-bit cache's, {kind}",
            figure=row["peak_bytes"] / full,
            unit="x",
            bar=1.0,
            direction="<=",
            baseline=f"16-bit {full / 1e9:.3f} GB; {kind} {row['peak_bytes'] / 1e9:.3f} GB",
        )
        for kind, row in part.items()
        if kind != "fp16"
    ]


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """`optiq kv-cache` on the 0.8B shapes."""
    out = WORK / "measured"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    command = harness.command(
        "kv-cache", uniform4(), "--target-bits", 4.5, "--candidate-bits", "4,8", "--seq-len", MEASURE_LENGTH, "-o", out
    )
    done = harness.run(command, WORK / "measured.log")
    entries = json.loads((out / "kv_config.json").read_text())
    return {"seconds": time.perf_counter() - start, "peak_bytes": done.peak_bytes, "entries": entries}


def measure_bars(part: dict[str, Any]) -> list[Bar]:
    """Its time."""
    what = f"optiq kv-cache on the 0.8B shapes at {MEASURE_LENGTH} tokens, two threads"
    base = f"peak {part['peak_bytes'] / 1e9:.2f} GB; {len(part['entries'])} layers"
    return [Bar("3.measure_seconds", what, part["seconds"], "s", MEASURE_SECONDS, "<=", base)]


def quality(settings: argparse.Namespace) -> dict[str, Any]:
    """See kv_quality.py."""
    rows, raw = kv_quality.quality()
    return {"rows": [asdict(row) for row in rows], "raw": raw}


def quality_bars(part: dict[str, Any]) -> list[Bar]:
    """As they were measured."""
    return [Bar(**{**row, "interval": row["interval"] and tuple(row["interval"])}) for row in part["rows"]]


NOT_MEASURED: dict[str, list[tuple[str, str, str, float, str]]] = {
    "quality": [
        (f"3.kl_over_{name}_{length}_{bits}bit", f"KL of ours over {name}, {length} tokens, {bits} bits", "x", most, "<=")
        for length in kv_quality.LENGTHS
        for bits in kv_quality.WIDTHS
        for name, most in (
            ("turbo", kv_quality.OVER_TURBO),
            ("affine", kv_quality.OVER_AFFINE),
            ("turbo_same", kv_quality.OVER_TURBO),
        )
    ],
    "peak": [("3.peak_best4", "peak resident size over the 16-bit cache's, 16k prompt", "x", 1.0, "<=")],
    "measure": [("3.measure_seconds", "optiq kv-cache on the 0.8B shapes at 4,096 tokens", "s", MEASURE_SECONDS, "<=")],
    "llama": [("3.decode_tq3_over_llama", "tokens per second at 32k over llama.cpp with 4-bit caches", "x", 1.0, ">=")],
}

PARTS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[dict[str, Any]], list[Bar]]]] = {
    "distortion": (distortion, distortion_bars),
    "quality": (quality, quality_bars),
    "peak": (peak, peak_bars),
    "measure": (measure, measure_bars),
    "decode": (decode, decode_bars),
    "llama": (llama, llama_bars),
}


def side(verb: str, what: str, first: int, settings: argparse.Namespace, *more: int) -> dict[str, Any]:
    """Ask `kv_sides.py` in a process of its own."""
    words = [sys.executable, SIDES, verb, uniform4(), what, first, *more]
    variables = harness.environment(OPTIQ_THREADS=str(settings.threads))
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=variables)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\nexited with {done.returncode}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure the wanted parts and write all that have been measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure anew; none writes the result from what is kept")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    settings = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    for name in settings.only.replace("none", "").split(","):
        if not name:
            continue
        print(name, flush=True)
        part = {
            "commit": harness.commit(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **PARTS[name][0](settings),
        }
        (WORK / f"{name}.json").write_text(json.dumps(part, indent=1) + "\n")
    bars: list[Bar] = []
    raw: dict[str, Any] = {}
    for name, (_, rows) in PARTS.items():
        path = WORK / f"{name}.json"
        if not path.exists():
            bars += [
                Bar(id, what, None, unit, bar, way, "not measured") for id, what, unit, bar, way in NOT_MEASURED.get(name, [])
            ]
            continue
        raw[name] = json.loads(path.read_text())
        part = {key: value for key, value in raw[name].items() if key not in ("commit", "date")}
        bars += rows(part)
    harness.write_result("kv", bars, raw)


if __name__ == "__main__":
    main()
