"""Fine-tuning: what a quantized base costs, how ranks are given out, speed beside mlx-lm and peft, memory, resume, packing, DPO.

    python benchmarks/lora.py [--only quality,ranks,peft,large,stock,memory,resume,packing,dpo] [--repeats 3] [--threads N]

Parts are kept below `build/lora` with their commit, so that `--only` renews one part; finished training runs are kept there too
and used again (`build/lora/runs`). Timed parts (peft, large, stock) want the machine for themselves: a peer whose threads wait by
spinning loses more than its share. torch runs under OPTIQ_TORCH_PYTHON (torch 2.13, transformers, peft).
Out: `results/lora.json` where all parts are there.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import harness
import lora_checks
import lora_runs as runs
import numpy as np
import parts
import peers
from cpu_sides import LAYERS, Worker, torch_python, uniform4
from harness import Bar
from memory import checkpoint

HERE = Path(__file__).parent
SEEDS, RANK, STEPS = (0, 1, 2), 4, 80
SCALINGS = ("constant", "by_bits", "by_sensitivity")
LEARNING = (
    "--rank", RANK, "--max-seq-length", 1024, "--iters", STEPS, "--lr", "4e-3", "--val-batches", -1, "--steps-per-eval", 20,
)  # fmt: skip
LENGTHS = (1024, 2048, 4096, 8192)
STOCK_TOKENS = 128  # stock mlx-lm takes seconds for these
KILLS = ((3, 7), (1, 2, 9), (5,), (4, 6, 8), (10,))  # logged steps after which a run is killed
PAIR_LENGTH = 1024  # no pair is longer
DPO = ("--method", "dpo", "--max-seq-length", PAIR_LENGTH, "--rank", 8, "--lr", "5e-4", "--num-epochs", 2, "--val-batches", -1)
FACTS = ("commit", "steps", "parameters", "loss", "valid_loss", "best_step", "tokens", "seconds", "peak_bytes")
VOCABULARY = 4000  # ids are drawn below this


def quality(settings: argparse.Namespace) -> dict[str, Any]:
    """The same adapter trained on the quantized model and on the model itself; one order of data and one start per seed."""
    return {"bfloat16": [_run("bfloat16", harness.MODEL, seed) for seed in SEEDS], "quantized": _scaled("constant")}


def quality_bars(part: dict[str, Any]) -> list[Bar]:
    """The row of the quantized base."""
    ratios = [mine["valid_loss"] / base["valid_loss"] for mine, base in zip(part["quantized"], part["bfloat16"], strict=True)]
    losses = {name: fmean(run["valid_loss"] for run in part[name]) for name in ("bfloat16", "quantized")}
    return [
        Bar(
            "6.quantized_base",
            f"validation loss of an adapter trained at 4.5 bpw over that trained in bf16, mean of {len(ratios)} seeds",
            100 * (fmean(ratios) - 1),
            "%",
            1.0,
            "<=",
            f"wikisql, {losses['quantized']:.4f} and {losses['bfloat16']:.4f} nats per token",
            (100 * (min(ratios) - 1), 100 * (max(ratios) - 1)),
        )
    ]


def ranks(settings: argparse.Namespace) -> dict[str, Any]:
    """Every way to give out ranks and to begin, at the parameters of a constant rank, on the quantized model."""
    begun = ("--init", "quantization-error", "--base", harness.MODEL)
    corrected = [_run("corrected", runs.quantized(), seed, *begun) for seed in SEEDS]
    return {name: _scaled(name) for name in SCALINGS} | {"corrected": corrected}


def ranks_bars(part: dict[str, Any]) -> list[Bar]:
    """A row for the default among the scalings, and one for the start from the quantization error."""
    from optiq.lora.settings import Settings

    default = Settings("", "", Path()).rank_scaling
    losses = {name: [run["valid_loss"] for run in part[name]] for name in (*SCALINGS, "corrected")}
    over = {
        name: [100 * (one / other - 1) for one, other in zip(losses[name], losses["constant"], strict=True)] for name in losses
    }
    best = min(SCALINGS, key=lambda name: fmean(losses[name]))
    told = [f"{name} {fmean(over[name]):+.2f} ± {stdev(over[name]):.2f} %" for name in SCALINGS if name != "constant"]
    seeds = len(losses["constant"])
    return [
        Bar(
            "6.rank_default",
            f"validation loss by --rank-scaling at equal parameters, {seeds} seeds: {default} (default) over the best, {best}",
            100 * (fmean(losses[default]) / fmean(losses[best]) - 1),
            "%",
            0.0,
            "<=",
            f"constant {fmean(losses['constant']):.4f} nats per token; over it by seed: {', '.join(told)}",
        ),
        Bar(
            "6.corrected_start",
            f"validation loss of --init quantization-error over random starts at 4.5 bpw, {seeds} seeds",
            fmean(over["corrected"]),
            "%",
            1.0,
            "<=",
            f"{fmean(losses['corrected']):.4f} and {fmean(losses['constant']):.4f} nats per token, constant ranks",
            (min(over["corrected"]), max(over["corrected"])),
        ),
    ]


def peft(settings: argparse.Namespace) -> dict[str, Any]:
    """Steps of the embedded model beside peft on torch, in the type that is faster there."""
    return _beside(settings, runs.quantized(), harness.MODEL, (8, 512), ("bfloat16", "float32"))


def large(settings: argparse.Namespace) -> dict[str, Any]:
    """The same with the shapes of Qwen3.5-0.8B, in bfloat16."""
    return _beside(settings, uniform4(), checkpoint(LAYERS), (1, 512), ("bfloat16",))


def peft_bars(part: dict[str, Any], slug: str = "peft", label: str = "embedded model") -> list[Bar]:
    """Speed and memory over the faster of torch's types."""
    speeds = {side: part["tokens"] / median(row["seconds"]) for side, row in part["sides"].items()}
    peaks = {side: row["peak_bytes"] / 1e9 for side, row in part["sides"].items()}
    peer = max((side for side in speeds if side != "ours"), key=lambda side: speeds[side])
    case = "{}, {} x {} tokens".format(label, *part["batch"])
    told = f"{peer} {speeds[peer]:.0f} tok/s, ours {speeds['ours']:.0f} tok/s at 4 bits"
    kept = f"{peer} {peaks[peer]:.2f} GB, ours {peaks['ours']:.2f} GB"
    return [
        Bar(f"6.over_{slug}", f"training over peft on torch, {case}", speeds["ours"] / speeds[peer], "x", 1.0, ">=", told),
        Bar(f"6.memory_over_{slug}", f"peak memory over peft's, {case}", peaks["ours"] / peaks[peer], "x", 1.0, "<=", kept),
    ]


def large_bars(part: dict[str, Any]) -> list[Bar]:
    """The same rows for the 0.8B shapes."""
    return peft_bars(part, "peft_0_8b", "0.8B shapes")


def stock(settings: argparse.Namespace) -> dict[str, Any]:
    """Steps beside mlx-lm's own trainer on the same quantized directory."""
    model, ids = runs.quantized(), _ids((1, STOCK_TOKENS))
    asked = {"model": str(model), "ids": str(ids), "rank": 8, "recompute": False}
    with (
        _ours(settings.threads) as mine,
        Worker("stock", settings.threads, [sys.executable, HERE / "lora_worker.py", "stock"]) as theirs,
    ):
        about = {"ours": mine.ask("about"), "stock": theirs.ask("about")}
        if about["stock"]["optiq"]:
            raise SystemExit("the stock side has imported optiq; its figures would not be stock mlx-lm's")
        for worker in (mine, theirs):
            worker.ask("train", **asked, steps=1)
        sides = {"stock": theirs.ask("train", **asked, steps=2), "ours": mine.ask("train", **asked, steps=settings.repeats + 2)}
    return {"about": about, "tokens": STOCK_TOKENS, "sides": sides}


def stock_bars(part: dict[str, Any]) -> list[Bar]:
    """Speed over stock mlx-lm."""
    speeds = {side: part["tokens"] / median(row["seconds"]) for side, row in part["sides"].items()}
    told = f"mlx_lm lora {speeds['stock']:.1f} tok/s, ours {speeds['ours']:.0f} tok/s, 1 x {part['tokens']} tokens"
    what = "tokens per second of training over stock mlx-lm, embedded model at 4.5 bpw"
    return [Bar("6.over_stock", what, speeds["ours"] / speeds["stock"], "x", 30, ">=", told)]


def memory(settings: argparse.Namespace) -> dict[str, Any]:
    """The peak of one step by length, each in a process of its own."""
    found = []
    for length in LENGTHS:
        with _ours(settings.threads) as worker:
            asked = {"model": str(uniform4()), "ids": str(_ids((1, length))), "rank": 8, "recompute": True}
            found.append(worker.ask("train", **asked, steps=1) | {"length": length})
            print(f"memory {length}: {found[-1]['peak_bytes'] / 1e9:.2f} GB", file=sys.stderr, flush=True)
    return {"steps": found}


def memory_bars(part: dict[str, Any]) -> list[Bar]:
    """What a token adds at the long end over what it adds before; of short sequences it is not the tokens that make the peak."""
    points = [(step["length"], step["peak_bytes"]) for step in part["steps"]]
    slopes = [(high - low) / (two - one) for (one, low), (two, high) in zip(points, points[1:], strict=False)]
    told = ", ".join(f"{length // 1024}k {peak / 1e9:.2f} GB" for length, peak in points)
    (short, _), (middle, _), (long, _) = points[-3:]
    what = f"peak memory per token, {middle} to {long} tokens over {short} to {middle}, 0.8B shapes (1 where it is linear)"
    return [Bar("6.memory_linear", what, slopes[-1] / slopes[-2], "x", 1.1, "<=", told)]


def resume(settings: argparse.Namespace) -> dict[str, Any]:
    """Runs that are killed beside one that is not, on the quantized model, with dropout."""
    options = (
        "--rank", RANK, "--max-seq-length", 256, "--iters", 12, "--dropout", 0.1,
        "--steps-per-report", 1, "--steps-per-save", 2, "--val-batches", 2, "--steps-per-eval", 5,
    )  # fmt: skip
    model, data, found = runs.quantized(), runs.task(), []
    whole = Path(runs.train("whole", model, data, *options)["adapter"])
    for trial, steps in enumerate(KILLS):
        shutil.rmtree(runs.WORK / "runs" / f"killed-{trial}", ignore_errors=True)
        same = runs.killed(f"killed-{trial}", model, data, options, steps) == (whole / "adapter_model.safetensors").read_bytes()
        found.append({"killed_after": steps, "same": same})
    return {"trials": found}


def resume_bars(part: dict[str, Any]) -> list[Bar]:
    """Trials with the same bits."""
    trials, kills = part["trials"], sum(len(trial["killed_after"]) for trial in part["trials"])
    what = f"of {len(trials)} runs, {kills} kills, those that ended with the bits of a run that was not killed"
    figure = 100 * fmean(trial["same"] for trial in trials)
    return [Bar("6.resume", what, figure, "%", 100, ">=", "SIGKILL, 12 steps, a state every second step")]


def packing(settings: argparse.Namespace) -> dict[str, Any]:
    """Packed against padded, in float32 and as one trains."""
    data = runs.task()
    return {"float32": lora_checks.packing(peers.float32_copy(), data), "quantized": lora_checks.packing(runs.quantized(), data)}


def packing_bars(part: dict[str, Any]) -> list[Bar]:
    """Losses and gradients."""
    rows = []
    for key, what in (("loss", "a token's loss"), ("gradient", "a number of the gradient")):
        told = f"in bf16 on 4.5 bpw: {part['quantized'][key]:.2g}; {part['float32']['samples']} samples"
        text = f"largest difference of {what}, packed and padded, over the largest, float32"
        rows.append(Bar(f"6.packing_{key}", text, part["float32"][key], "", 1e-5, "<=", told))
    return rows


def dpo(settings: argparse.Namespace) -> dict[str, Any]:
    """An adapter trained on preferences, and its margins on pairs that were held out."""
    model, data = runs.quantized(), runs.pairs()
    done = runs.train("dpo", model, data, *DPO)
    return {"run": facts(done), "margins": lora_checks.margins(model, Path(done["adapter"]), data, 0.1, PAIR_LENGTH)}


def dpo_bars(part: dict[str, Any]) -> list[Bar]:
    """The mean margin, 0 without the adapter."""
    found = part["margins"]
    told = f"0 without the adapter; {found['pairs']} pairs, margin above 0 in {100 * found['raised']:.0f} %"
    return [
        Bar("6.dpo_margin", "margin of held-out pairs after DPO", found["mean"], "nats", 0.0, ">=", told, tuple(found["ci95"]))
    ]


def _run(name: str, model: Path, seed: int, *options: object) -> dict[str, Any]:
    done = runs.train(f"{name}-{seed}", model, runs.task(), *LEARNING, "--rank-scaling", "constant", "--seed", seed, *options)
    print(f"{name}, seed {seed}: {done['valid_loss']:.4f} at step {done['best_step']}", file=sys.stderr, flush=True)
    return facts(done)


def facts(done: dict[str, Any]) -> dict[str, Any]:
    """What of a run is kept in the result."""
    counts = Counter(done["ranks"].values())
    return {key: done[key] for key in FACTS} | {"layers_by_rank": {str(rank): counts[rank] for rank in sorted(counts)}}


def _scaled(name: str) -> list[dict[str, Any]]:
    """A scaling at the parameters of the constant one."""
    constant = [_run("constant", runs.quantized(), seed) for seed in SEEDS]
    if name == "constant":
        return constant
    budget = ("--rank-scaling", name, "--param-budget", constant[0]["parameters"])
    return [_run(name, runs.quantized(), seed, *budget) for seed in SEEDS]


def _ours(threads: int) -> Worker:
    return Worker("ours", threads, [sys.executable, HERE / "lora_worker.py", "ours"])


def _beside(
    settings: argparse.Namespace, mine: Path, theirs: Path, shape: tuple[int, int], types: tuple[str, ...]
) -> dict[str, Any]:
    """Steps of all sides in turn, without gradient checkpointing; each has made one before that is not counted."""
    asked = {"ids": str(_ids(shape)), "rank": 8, "recompute": False, "steps": 1}
    with contextlib.ExitStack() as stack:
        sides = {"ours": (stack.enter_context(_ours(settings.threads)), {"model": str(mine)})}
        for kind in types:
            words = [torch_python(), HERE / "peer_peft.py", settings.threads]
            peer = stack.enter_context(Worker(f"peft-{kind}", settings.threads, words))
            sides[f"peft {kind}"] = (peer, {"model": str(theirs), "dtype": kind})
        found = {
            name: {"about": side.ask("about"), "first": side.ask("train", **asked, **own)} for name, (side, own) in sides.items()
        }
        steps: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(settings.repeats):
            for name, (side, own) in sides.items():
                steps[name].append(side.ask("train", **asked, **own))
    for name, made in steps.items():
        found[name] |= made[-1] | {"seconds": [step["seconds"][0] for step in made], "loss": [step["loss"][0] for step in made]}
        print(f"{name} {shape}: {found[name]['seconds']}", file=sys.stderr, flush=True)
    return {"batch": shape, "tokens": math.prod(shape), "sides": found}


def _ids(shape: tuple[int, int]) -> Path:
    """Random tokens [B, L + 1] that all sides train on."""
    count, length = shape
    path = runs.WORK / f"ids-{count}x{length}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.random.default_rng(0).integers(1, VOCABULARY, (count, length + 1)).astype(np.int32))
    return path


PARTS: dict[str, parts.Part] = {
    "quality": (quality, quality_bars),
    "ranks": (ranks, ranks_bars),
    "peft": (peft, peft_bars),
    "large": (large, large_bars),
    "stock": (stock, stock_bars),
    "memory": (memory, memory_bars),
    "resume": (resume, resume_bars),
    "packing": (packing, packing_bars),
    "dpo": (dpo, dpo_bars),
}


def main() -> None:
    """Measure what was asked for; print the rows of all parts that are there."""
    parser = parts.parser_of(__doc__, PARTS)
    parser.set_defaults(repeats=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side")
    parts.measure("lora", PARTS, parser.parse_args())


if __name__ == "__main__":
    main()
