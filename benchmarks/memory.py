"""Peak memory of `optiq convert` on random checkpoints with the shapes of Qwen3.5-0.8B, 12 and 24 layers.

    python benchmarks/memory.py

Static sensitivity, searched codes, no verification: the path of a machine that has no time for statistics. The peak is
the child's largest resident size as the kernel reports it at exit. Out: `results/memory.json`.
"""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
from harness import Bar
from storage import entries, entry_bytes

WORK = harness.BUILD / "memory"
LAYERS = (12, 24)
CEILING_BYTES = 1_500_000_000  # plus the largest tensor
GROWTH_PERCENT = 5.0
OPTIONS = ("--target-bpw", 4.5, "--sensitivity", "static", "--encoder", "search", "--no-verify")


def checkpoint(layers: int) -> Path:
    """A random checkpoint with real names and shapes, made on first use."""
    out = WORK / f"random-0.8B-{layers}"
    if out.exists():
        return out
    tool, shapes = harness.SHARED / "tools" / "random_checkpoint.py", harness.SHARED / "data" / "qwen" / "qwen3_5"
    if not tool.exists():
        raise SystemExit(f"{tool}: not there; set OPTIQ_SHARED to the folder that holds tools/ and data/")
    tensors, config = shapes / "tensors/Qwen3.5-0.8B.tensors.json", shapes / "configs/Qwen3.5-0.8B.config.json"
    part = WORK / "random.partial"
    shutil.rmtree(part, ignore_errors=True)
    words = [sys.executable, tool, tensors, config, part, "--layers", layers, "--tokenizer", harness.MODEL]
    harness.run(words, WORK / "random.log")
    part.rename(out)
    return out


def measure(layers: int) -> dict[str, Any]:
    """Convert one checkpoint in a process of its own and read its peak."""
    model, out = WORK / f"random-0.8B-{layers}", WORK / f"converted-{layers}"
    shutil.rmtree(out, ignore_errors=True)
    command = harness.command("convert", model, *OPTIONS, "-o", out)
    done = harness.run(command, WORK / f"converted-{layers}.log")
    shutil.rmtree(out)
    largest = max(map(entry_bytes, entries(model).values()))
    return {
        "layers": layers,
        "checkpoint_bytes": sum(path.stat().st_size for path in model.glob("model*.safetensors")),
        "largest_tensor_bytes": largest,
        "peak_bytes": done.peak_bytes,
        "seconds": round(done.seconds, 1),
    }


def main() -> None:
    """Measure both depths and write the result."""
    for layers in LAYERS:
        checkpoint(layers)
    with ThreadPoolExecutor(len(LAYERS)) as pool:  # each conversion is a process of its own with a peak of its own
        runs = list(pool.map(measure, LAYERS))
    shallow, deep = runs
    baseline = f"checkpoint {deep['checkpoint_bytes'] / 1e9:.2f} GB, {deep['layers']} layers"
    bars = [
        Bar(
            id="1.convert_peak",
            what="peak resident size of convert (static, search), 0.8B shapes, 24 layers",
            figure=deep["peak_bytes"] / 1e9,
            unit="GB",
            bar=(CEILING_BYTES + deep["largest_tensor_bytes"]) / 1e9,
            direction="<=",
            baseline=baseline,
        ),
        Bar(
            id="1.convert_growth",
            what="growth of that peak from 12 to 24 layers",
            figure=100 * (deep["peak_bytes"] / shallow["peak_bytes"] - 1),
            unit="%",
            bar=GROWTH_PERCENT,
            direction="<=",
            baseline=f"{shallow['peak_bytes'] / 1e9:.2f} GB at 12 layers",
        ),
    ]
    harness.write_result("memory", bars, {"options": list(map(str, OPTIONS)), "runs": runs})


if __name__ == "__main__":
    main()
