"""The conversion of a random checkpoint with the shapes of Qwen3.5-4B: time beside its arithmetic floor, memory, disk.

    python benchmarks/big.py [--samples 8] [--model 4B]

`optiq convert --sensitivity fisher --encoder gptq --calibration-samples 8`, everything else as it comes. Takes an hour or
more on two cores and about 40 GB of disk below `build/big`. A run that is cut off goes on where the conversion stopped,
and its time and its peaks are counted together. Out: `results/big.json`.

The peak of memory is the largest resident size that the kernel reports for the process. The floor is the matrix products
that the method cannot do without, counted from the shapes, over the float32 rate that our own kernels reach in one product.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import threading
import time
from math import prod
from pathlib import Path
from typing import Any

import harness
from cpu_sides import Worker, processor_features
from harness import Bar

from optiq.measure.statistics import product_operations
from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream
from optiq.quantize.settings import Settings
from optiq.quantize.workspace import text

WORK = harness.BUILD / "big"
SHAPES = harness.SHARED / "data" / "qwen" / "qwen3_5"
TARGET_BPW = 4.5
PEAK_GB = 8.0
PRODUCT = (4096, 1024, 3584)  # the larger shape of cpu.py
REPEATS = 5
WATCH_SECONDS = 5.0


def checkpoint(model: str) -> Path:
    """A random checkpoint with real names and shapes, made on first use."""
    out, part = WORK / f"random-{model}", WORK / "random.partial"
    if not out.exists():
        shutil.rmtree(part, ignore_errors=True)
        tool = harness.SHARED / "tools" / "random_checkpoint.py"
        files = SHAPES / f"tensors/Qwen3.5-{model}.tensors.json", SHAPES / f"configs/Qwen3.5-{model}.config.json"
        harness.run([sys.executable, tool, *files, part, "--tokenizer", harness.MODEL], WORK / "random.log")
        part.rename(out)
    return out


def product_rate(threads: int) -> list[float]:
    """Operations per second of one float32 product, ours."""
    rows, inner, columns = PRODUCT
    with Worker("ours", threads) as worker:
        seconds = [worker.ask("dense", dtype="float32", shape=PRODUCT)["seconds"] for _ in range(REPEATS)]
    return [2 * rows * inner * columns / value for value in seconds]


def operations(model: Path, samples: int) -> dict[str, float]:
    """Operations of the matrix products of each stage, two per multiply-add.

    The gradient pass (`product_operations`); one forward pass of the stored blocks and one second moment per tensor for the
    encoder; per tensor [O, I] of gptq an inverse factor, I³, and the feedback, O I² / 2; the divergence on dev and on score
    text, two models forward each.
    """
    checkpoint = Checkpoint.open(model)
    stream = Stream(checkpoint)
    sets = text(Settings(str(model), WORK, calibration_samples=samples), checkpoint)
    tokens, dev, score = (int(found.ids.size) for found in (sets.calibration, sets.dev, sets.score))
    weights = moments = solving = 0.0
    for tensor in stream.topology.tensors:
        size, width = float(prod(tensor.shape)), float(tensor.shape[-1])
        weights += size
        moments += (tokens + dev) * width * width
        solving += width**3 + size * width / 2
    return {
        "gradient_pass": 2.0 * product_operations(stream, tokens, 0),
        "encoding": 2.0 * ((tokens + dev) * weights + moments + solving),
        "divergence": 2.0 * 2.0 * (dev + score) * weights,
        "calibration_tokens": tokens,
        "dev_tokens": dev,
        "score_tokens": score,
    }


class Watch:
    """Samples what a conversion takes while it runs, disk below `WORK` apart from the checkpoint, and keeps it if cut off."""

    def __init__(self, record: Path, model: Path) -> None:
        self._record, self._checkpoint_bytes = record, disk_bytes(model)
        self._attempts = json.loads(record.read_text()) if record.exists() else []
        self._stop = threading.Event()

    def __enter__(self) -> list[dict[str, float]]:
        self._attempts.append({"seconds": 0.0, "disk_bytes": 0, "peak_bytes": 0})
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self._attempts

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        start, now = time.perf_counter(), self._attempts[-1]
        while not self._stop.wait(WATCH_SECONDS):
            now["seconds"] = round(time.perf_counter() - start, 1)
            now["disk_bytes"] = max(now["disk_bytes"], disk_bytes(WORK) - self._checkpoint_bytes)
            now["peak_bytes"] = max(now["peak_bytes"], children_peak_bytes())
            self._record.write_text(json.dumps(self._attempts))


def disk_bytes(folder: Path) -> int:
    """Bytes that the files below a folder occupy; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*") if folder.exists() else ():
        try:
            total += path.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def children_peak_bytes() -> int:
    """The largest resident size of a child of this process so far, 0 where the system does not say."""
    peaks = [0]
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields.get("PPid", "").strip() == str(os.getpid()) and "VmHWM" in fields:
            peaks.append(1024 * int(fields["VmHWM"].split()[0]))
    return max(peaks)


def convert(model: Path, name: str, samples: int) -> dict[str, Any]:
    """Convert, or go on converting; what all attempts took together."""
    out, work, record = WORK / f"converted-{name}", WORK / f"work-{name}", WORK / f"attempts-{name}.json"
    options = ("--target-bpw", TARGET_BPW, "--sensitivity", "fisher", "--encoder", "gptq", "--calibration-samples", samples)
    command = harness.command("convert", model, *options, "--work", work, "-o", out)
    with Watch(record, model) as attempts:
        done = harness.run(command, WORK / f"converted-{name}.log", check=False)
    last = attempts[-1]
    last |= {"seconds": round(done.seconds, 1), "peak_bytes": max(done.peak_bytes, last["peak_bytes"]), "code": done.code}
    record.write_text(json.dumps(attempts))
    return {
        "options": list(map(str, options)),
        "code": done.code,
        "tail": done.tail[-600:],
        "attempts": attempts,
        "seconds": sum(attempt["seconds"] for attempt in attempts),
        "peak_bytes": max(attempt["peak_bytes"] for attempt in attempts),
        "disk_bytes": max(attempt["disk_bytes"] for attempt in attempts),
        "checkpoint_bytes": sum(path.stat().st_size for path in model.glob("model*.safetensors")),
    }


def main() -> None:
    """Convert and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=8, help="calibration rows per domain")
    parser.add_argument("--model", default="4B", help="which shapes")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    model = checkpoint(args.model)
    rates, counted = product_rate(threads), operations(model, args.samples)
    found = convert(model, args.model, args.samples)
    total = sum(counted[stage] for stage in ("gradient_pass", "encoding", "divergence"))
    floor = total / statistics.median(rates)
    finished = found["code"] == 0
    took = (
        f"{found['seconds'] / 60:.0f} min in {len(found['attempts'])} run(s); floor {floor / 60:.0f} min "
        f"({total / 1e12:.0f} Tflop at {statistics.median(rates) / 1e9:.0f} GF/s float32)"
    )
    disk = f"checkpoint {found['checkpoint_bytes'] / 1e9:.2f} GB; at most {found['disk_bytes'] / 1e9:.1f} GB of disk beside it"
    what = f"convert (fisher, gptq, {args.samples} samples per domain), {args.model} shapes"
    bars = [
        Bar("2.big_finishes", f"{what}: finishes", float(finished), "", 1.0, ">=", took),
        Bar(
            id="2.big_peak",
            what=f"{what}: peak resident size",
            figure=found["peak_bytes"] / 1e9 if finished else None,
            unit="GB",
            bar=PEAK_GB,
            direction="<=",
            baseline=disk,
        ),
    ]
    raw = {"processor": processor_features(), "threads": threads, "rates": rates, "operations": counted, "floor_seconds": floor}
    harness.write_result("big", bars, raw | found)


if __name__ == "__main__":
    main()
