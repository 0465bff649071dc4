"""Speed on a CPU beside llama.cpp, stock mlx-lm and torch, on a random checkpoint with the shapes of Qwen3.5-0.8B.

    python benchmarks/cpu.py [--only decode,prefill,stock,dense,train] [--repeats 5] [--threads N] [--depths …] [--prompts …]

Each side is a process of its own that waits while the others run; samples are taken in turn and all kept. A part that
was measured is kept below `build/cpu` with its commit and date, so that `--only` renews one part and the result holds
all of them. Give the machine nothing else to do: a peer whose threads wait by spinning loses more than its share.

llama.cpp is built on first use (`peer_llama.py`), torch runs under OPTIQ_TORCH_PYTHON or in an environment made below
`build` (torch 2.13, transformers). Out: `results/cpu.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cpu_bars as bars
import harness
import numpy as np
import peer_llama
import peers
from cpu_sides import Worker, bandwidth, processor_features, torch_worker, uniform4
from harness import Bar

WORK = harness.BUILD / "cpu"
NEW = 32  # tokens per sample of decoding
LONG = 4096  # from here on, a launch of llama.cpp has to read so much first that it takes several samples
BATCH = (8, 512)
SEED = 0
# Stock mlx-lm takes seconds per token here: fewer tokens, fewer samples. Its rate per token hardly depends on either.
STOCK_NEW, STOCK_PROMPT, STOCK_REPEATS = 4, 16, 3


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    repeats: int
    threads: int
    depths: tuple[int, ...]
    prompts: tuple[int, ...]


def rounds(repeats: int, length: int) -> list[int]:
    """How many samples to take from each side before the next one's turn, launch by launch."""
    each = 3 if length >= LONG else 1
    return [each] * -(-repeats // each)


def ours(settings: Settings) -> Worker:
    """Our side, with the quantized model loaded."""
    worker = Worker("ours", settings.threads)
    worker.ask("load", model=str(uniform4()))
    return worker


def decode(settings: Settings) -> dict[str, Any]:
    """Seconds per token at each depth, beside llama.cpp; bandwidth in between."""
    weights = bars.weight_bytes(uniform4())
    rows = []
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(ours(settings))
        peers = {name: stack.enter_context(llama(name, settings.threads)) for name in peer_llama.QUANTIZATIONS}
        about = worker.ask("about")
        for depth in settings.depths:
            filled = worker.ask("fill", depth=depth)
            for peer in peers.values():
                peer.ask("fill", depth=depth)
            row: dict[str, Any] = {"depth": depth, **filled, "ours": [], "llama": {name: [] for name in peers}, "bandwidth": []}
            for _ in range(settings.repeats):
                for name, peer in peers.items():
                    row["llama"][name].append(NEW / peer.ask("decode", tokens=NEW)["seconds"])
                row["ours"].append(NEW / worker.ask("decode", tokens=NEW)["seconds"])
                row["bandwidth"] += bandwidth(settings.threads, 1)
            rows.append(row)
            progress("decode", depth, row["ours"], **row["llama"])
    return {"about": about, "weight_bytes": weights, "llama": peer_llama.description(), "new_tokens": NEW, "rows": rows}


def llama(quantization: str, threads: int) -> Worker:
    """The peer's side, with its model loaded."""
    return Worker(f"llama-{quantization}", threads, peer_llama.worker(quantization, threads))


def prefill(settings: Settings) -> dict[str, Any]:
    """Tokens per second of reading a prompt, beside llama.cpp."""
    rows = []
    with ours(settings) as worker:
        about = worker.ask("about")
        worker.ask("read", tokens=min(settings.prompts))
        for prompt in settings.prompts:
            row: dict[str, Any] = {"prompt": prompt, "ours": [], "llama": {}}
            for count in rounds(settings.repeats, prompt):
                for name in peer_llama.QUANTIZATIONS:
                    row["llama"].setdefault(name, []).extend(peer_llama.bench(name, settings.threads, count, prompt=prompt))
                row["ours"] += [prompt / worker.ask("read", tokens=prompt)["seconds"] for _ in range(count)]
            rows.append(row)
            progress("prefill", prompt, row["ours"], **row["llama"])
    return {"about": about, "llama": peer_llama.description(), "rows": rows}


def stock(settings: Settings) -> dict[str, Any]:
    """Decoding and reading with stock mlx-lm on the same directory."""
    found: dict[str, Any] = {"ours": {"decode": [], "prefill": []}, "stock": {"decode": [], "prefill": []}}
    prompts = {"ours": bars.PROMPTS[0], "stock": STOCK_PROMPT}
    tokens = {"ours": NEW, "stock": STOCK_NEW}
    with ours(settings) as mine, Worker("stock", settings.threads) as theirs:
        theirs.ask("load", model=str(uniform4()))
        about = {"ours": mine.ask("about"), "stock": theirs.ask("about")}
        if about["stock"]["optiq"]:
            raise SystemExit("the stock side has imported optiq; its figures would not be stock mlx-lm's")
        sides = {"ours": mine, "stock": theirs}
        for worker in sides.values():
            worker.ask("fill", depth=0)
        for _ in range(min(settings.repeats, STOCK_REPEATS)):
            for name, worker in sides.items():
                found[name]["decode"].append(tokens[name] / worker.ask("decode", tokens=tokens[name])["seconds"])
                found[name]["prefill"].append(prompts[name] / worker.ask("read", tokens=prompts[name])["seconds"])
    progress("stock", 0, found["ours"]["decode"], stock=found["stock"]["decode"])
    note = f"stock decodes {STOCK_NEW} tokens and reads {STOCK_PROMPT} per sample, ours {NEW} and {bars.PROMPTS[0]}"
    return {"about": about, "note": note, "prompt": prompts, "new_tokens": tokens, **found}


def dense(settings: Settings) -> dict[str, Any]:
    """Operations per second of dense products, beside torch."""
    rows = []
    with Worker("ours", settings.threads) as mine, torch_worker(peers.float32_copy(), token_file(), settings.threads) as theirs:
        about = {"ours": mine.ask("about"), "torch": theirs.ask("about")}
        for shape in bars.SHAPES:
            for dtype in bars.DTYPES:
                row: dict[str, Any] = {"shape": shape, "dtype": dtype, "ours": [], "torch": []}
                operations = 2 * shape[0] * shape[1] * shape[2]
                for _ in range(settings.repeats):
                    for name, worker in (("torch", theirs), ("ours", mine)):
                        row[name].append(operations / worker.ask("dense", dtype=dtype, shape=shape)["seconds"])
                rows.append(row)
                progress("dense", (dtype, *shape), row["ours"], torch=row["torch"])
    return {"about": about, "rows": rows}


def train(settings: Settings) -> dict[str, Any]:
    """One step forward and back of the embedded model in float32, beside transformers on torch."""
    model = peers.float32_copy()  # both sides read float32, so that neither rounds what it derives from the weights
    samples: dict[str, list[dict[str, float]]] = {"ours": [], "torch": []}
    with Worker("ours", settings.threads) as mine, torch_worker(model, token_file(), settings.threads) as theirs:
        about = {"ours": mine.ask("about"), "torch": theirs.ask("about")}
        asked = {"model": str(model), "ids": str(token_file())}
        for _ in range(settings.repeats + 1):
            samples["torch"].append(theirs.ask("train"))
            samples["ours"].append(mine.ask("train", **asked))
    samples = {name: found[1:] for name, found in samples.items()}  # the first one warms up
    progress("train", BATCH, *([sample["seconds"] for sample in found] for found in samples.values()))
    return {"about": about, "batch": BATCH, **samples}


def token_file() -> Path:
    """Random token ids [B, L] that both sides train on."""
    path = WORK / "ids.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        vocabulary = json.loads((harness.MODEL / "config.json").read_text())["text_config"]["vocab_size"]
        np.save(path, np.random.default_rng(SEED).integers(0, vocabulary, BATCH).astype(np.int32))
    return path


def progress(part: str, case: object, *samples: Sequence[float], **named: Sequence[float]) -> None:
    """One line per case on stderr: the medians."""
    found = {"ours": samples[0], **named} if named else dict(enumerate(samples))
    text = ", ".join(f"{name} {harness.number(statistics.median(values))}" for name, values in found.items())
    print(f"{part} {case}: {text}", file=sys.stderr, flush=True)


PARTS: dict[str, tuple[Callable[[Settings], dict[str, Any]], Callable[[dict[str, Any] | None], list[Bar]]]] = {
    "decode": (decode, bars.decode),
    "prefill": (prefill, bars.prefill),
    "stock": (stock, bars.stock),
    "dense": (dense, bars.dense),
    "train": (train, bars.train),
}


def measured(name: str) -> dict[str, Any] | None:
    """What the last run of a part found."""
    path = WORK / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def measure(name: str, settings: Settings) -> None:
    """Run one part and keep what it found, with the commit, the date and the load of the machine before it."""
    load = os.getloadavg()[0]
    start = time.perf_counter()
    found = PARTS[name][0](settings)
    about = {
        "commit": harness.commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "threads": settings.threads,
        "load_before": round(load, 2),
        "seconds": round(time.perf_counter() - start, 1),
    }
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / f"{name}.json").write_text(json.dumps(about | found, indent=1) + "\n")


def main() -> None:
    """Measure what was asked for and write the result, parts measured earlier included."""
    numbers = lambda text: tuple(int(word) for word in text.split(",") if word)  # noqa: E731
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated; none writes the result from what is kept")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--depths", type=numbers, default=bars.DEPTHS)
    parser.add_argument("--prompts", type=numbers, default=bars.PROMPTS)
    args = parser.parse_args()
    wanted = [name for name in args.only.split(",") if name and name != "none"]
    unknown = set(wanted) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    settings = Settings(args.repeats, args.threads, args.depths, args.prompts)
    for name in wanted:
        measure(name, settings)
    raw = {name: measured(name) for name in PARTS}
    rows = [bar for name, (_, make) in PARTS.items() for bar in make(raw[name])]
    harness.write_result("cpu", rows, {"processor": processor_features(), **raw})


if __name__ == "__main__":
    main()
