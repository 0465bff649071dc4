"""How fast a model reads and writes on this machine: random prompts, several lengths, medians and spreads, comparisons.

Repetitions go round all rows in turn, so that a machine that slows down slows all rows alike. Data in: a model. Data out:
the result file of docs/formats.md ("Bench results").
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from optiq.errors import FormatError
from optiq.events import QUIET, Events
from optiq.files import read_json
from optiq.generate.decode import Context
from optiq.generate.options import Plan
from optiq.kernels.argmax import argmax
from optiq.models.caches import Caches, make_caches, wired

SCHEMA = 1
KIND = "optiq-bench"
RATES = ("prompt_tokens_per_s", "decode_tokens_per_s")


@dataclass
class _Row:
    """One pair of lengths and what has been measured of it so far."""

    prompt: int
    generate: int
    samples: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*RATES, "prompt_s", "decode_s")})
    peak_memory_bytes: int = 0
    cache_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Medians, extremes and all samples; a rate that no sample has is null."""
        found: dict[str, Any] = {"prompt_tokens": self.prompt, "generate_tokens": self.generate}
        found |= {name: _spread(values) for name, values in self.samples.items()}
        return {**found, "peak_memory_bytes": self.peak_memory_bytes, "cache_bytes": self.cache_bytes}


def measure(
    model: Any, vocabulary: int, plan: Plan, events: Events = QUIET, make: Callable[[Any], Caches] = make_caches
) -> list[dict[str, Any]]:
    """The rows of a result, after one run that does not count.

    Args:
        model: as `optiq.models.load` gives it.
        vocabulary: token ids are drawn from 0 to here, this one not included.
        plan: lengths and repetitions.
        events: where progress goes.
        make: fresh caches for the model.
    """

    def once(length: int, row: _Row) -> None:
        _run(Context(model, make), generator.integers(0, vocabulary, length).tolist(), row, plan)

    rows = [_Row(prompt, generate) for prompt in plan.prompt_lengths for generate in plan.generate_lengths]
    generator = np.random.default_rng(plan.seed)
    with wired(), events.stage("measure", total=len(rows) * plan.repeats, unit="runs") as stage:
        once(min(plan.prompt_lengths), _Row(0, 2))
        for _ in range(plan.repeats):
            for row in rows:
                once(row.prompt, row)
                stage.advance(note=f"prompt {row.prompt}, generate {row.generate}")
    return [row.as_json() for row in rows]


def _run(context: Context, prompt: list[int], row: _Row, plan: Plan) -> None:
    """One prompt read and continued greedily, whatever the tokens are."""
    mx.reset_peak_memory()
    start = time.perf_counter()
    context.read(prompt[:-1], plan.prefill_chunk)
    first = last = start
    for count, _ in enumerate(context.steps(prompt[-1], lambda logits: argmax(logits[None]), row.generate)):
        last = time.perf_counter()
        first = last if count == 0 else first
    row.samples["prompt_s"].append(first - start)
    row.samples["prompt_tokens_per_s"].append(len(prompt) / (first - start))
    if row.generate > 1:
        row.samples["decode_s"].append(last - first)
        row.samples["decode_tokens_per_s"].append((row.generate - 1) / (last - first))
    row.peak_memory_bytes = max(row.peak_memory_bytes, int(mx.get_peak_memory()))
    row.cache_bytes = context.bytes


def weight_bytes(model: Any) -> int:
    """What the model's parameters take in memory."""
    return sum(int(value.nbytes) for _, value in tree_flatten(model.parameters()))


def machine() -> dict[str, Any]:
    """Where it ran: processor, device, threads, kernels, the BLAS behind dense products, versions."""
    from optiq import __version__
    from optiq.kernels import native
    from optiq.kernels.blas import preload, threads
    from optiq.models.stock import mlx_lm_version

    return {
        "cpu": _cpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": "gpu" if mx.default_device() == mx.gpu else "cpu",
        "threads": threads(),
        "kernels": " ".join(filter(None, (native.choice().name, native.choice().level))),
        "blas": preload().name,
        "mlx": mx.__version__,
        "mlx_lm": mlx_lm_version(),
        "optiq": __version__,
    }


def read_result(path: str) -> dict[str, Any]:
    """An earlier result.

    Raises:
        InputError: no such file.
        FormatError: not a result of `optiq bench`, or of another version.
    """
    found = read_json(path, "bench result", schema=SCHEMA)
    if found.get("kind") != KIND or not isinstance(found.get("rows"), list):
        raise FormatError(f"{path} is no result of `optiq bench` (kind {found.get('kind')!r}, expected {KIND!r})")
    return found


def compare(now: Mapping[str, Any], earlier: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Ratios of medians, now over earlier, for the rows that both have (null where one lacks a rate).

    Args:
        now, earlier: results.
        name: of the earlier one.

    Returns:
        `name`, `differs` (what the two runs do not have in common: model, processor, device) and `rows`.
    """
    before = {_key(row): row for row in earlier["rows"]}
    rows = []
    for row in now["rows"]:
        old = before.get(_key(row))
        ratios = {rate: _ratio(row.get(rate), old.get(rate) if old else None) for rate in RATES}
        rows.append({"prompt_tokens": row["prompt_tokens"], "generate_tokens": row["generate_tokens"], **ratios})
    pairs = [
        ("kv", "cache"),
        ("model", "name"),
        ("model", "weight_bytes"),
        ("machine", "cpu"),
        ("machine", "device"),
        ("machine", "threads"),
    ]
    differs = [f"{part} {key}" for part, key in pairs if now.get(part, {}).get(key) != earlier.get(part, {}).get(key)]
    return {"name": name, "differs": differs, "rows": rows}


def _key(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["prompt_tokens"], row["generate_tokens"]


def _ratio(now: Mapping[str, Any] | None, earlier: Mapping[str, Any] | None) -> float | None:
    return now["median"] / earlier["median"] if now and earlier and earlier["median"] else None


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "samples": list(values)}


def _cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
