"""`optiq kv-cache`: the stages in order, no maths.

model, text -> statistics -> damages -> plan -> its divergence -> kv_config.json, kv_sensitivity.json, kv_curve.json
An earlier run's statistics and damages can be taken instead of measured ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from optiq import files
from optiq.errors import InputError
from optiq.events import QUIET, Events
from optiq.kv import allocation, attach, sensitivity, table
from optiq.kv.config import NAME, STATISTICS, read_config, write_config
from optiq.kv.recipe import GROUP_SIZES, Recipe, check_bits, check_scheme
from optiq.kv.rows import Statistics
from optiq.kv.sensitivity import LayerDamage
from optiq.kv.simulation import make_caches
from optiq.kv.table import CURVE, SENSITIVITY
from optiq.kv.text import rows
from optiq.measure.tokens import Tokens
from optiq.models.checkpoint import Checkpoint
from optiq.models.hub import resolve
from optiq.models.load import load_modules
from optiq.models.parts import Parts
from optiq.plan.types import Plan

MOST_SAMPLES = 4
SAMPLE_BYTES = 2e12  # weight bytes x tokens that are read where --n-samples does not say: minutes on a small CPU
WIDE_BYTES = 200_000_000  # of weights, up to which a model computes in float32; at 0.8 B in 4 bits that takes three times as long
TIMED = 128  # tokens of the pass that the expected time comes from
DEFAULT_BITS = (4, 8)


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Args:
        model: directory or hub id.
        output: directory of the files.
        target_bits: mean width over all keys and values.
        candidate_bits: widths to choose from.
        samples: rows of text; None for `default_samples`.
        length: tokens per row; less where the model's context is shorter.
        group_size: scheme affine: values per scale.
        scheme: one of `recipe.SCHEMES`.
        overwrite: replace files of an earlier run.
        source: directory of an earlier run whose damages are taken instead of measured.
    """

    model: str
    output: Path
    target_bits: float = 5.0
    candidate_bits: Sequence[int] = DEFAULT_BITS
    samples: int | None = None
    length: int = 8192
    group_size: int = 64
    scheme: str = "best"
    overwrite: bool = False
    source: Path | None = None


@dataclass(frozen=True)
class Study:
    """What was found.

    Args:
        path: the written kv_config.json.
        found: damages.
        plan: the solver's.
        recipes: by layer.
        measured: KL of the whole plan: `packed` with every token packed (what the predictions add up to), `decoding` with
            tokens packed as decoding packs them.
        text: what it was measured on.
    """

    path: Path
    found: list[LayerDamage]
    plan: Plan
    recipes: dict[int, Recipe]
    measured: dict[str, float]
    text: Tokens


def run(settings: Settings, events: Events = QUIET) -> Study:
    """Measure, choose and write.

    Raises:
        OptiqError: one clear line; nothing is written.
    """
    check(settings)
    path = resolve(settings.model, events=events)
    checkpoint = Checkpoint.open(path)
    model, _ = load_modules(path)
    attach.layers(model)
    text = rows(checkpoint, settings.length, settings.samples or default_samples(model, settings.length), events=events)
    for note in text.notes:
        events.info(note.replace("mixed: ", "text: "))
    dtype, weights = cache_dtype(model), weight_bytes(model)
    with Parts(model, weights <= WIDE_BYTES) as parts:
        if settings.source is None:
            base, known, found = _measured(parts, settings, text, dtype, weights, events)
        else:
            base, known, found = _read(parts, settings, settings.source)
        plan, recipes = allocation.solve(found, base, settings.target_bits)
        with events.stage("the plan's divergence", 1, "passes") as stage:
            packed, decoding = sensitivity.measure_plan(parts, text.ids, recipes, known, dtype)
            stage.advance()
    file = write(settings, recipes, known, found, base)
    return Study(file, found, plan, recipes, {"packed": packed, "decoding": decoding}, text)


def _measured(
    parts: Parts, settings: Settings, text: Tokens, dtype: mx.Dtype, weights: int, events: Events
) -> tuple[Recipe, dict[int, Statistics], list[LayerDamage]]:
    """The recipe whose widths are tried, statistics that pay, and damages."""
    base = sensitivity.base_recipe(settings.scheme, settings.candidate_bits, settings.group_size)
    announce(parts, settings, text, weights, events)
    moments = sensitivity.gather(parts, text.ids, dtype, events)
    known: dict[int, Statistics] = {}
    if base.centred:
        bits = min(settings.candidate_bits)
        known = sensitivity.choose_statistics(parts, text.ids[0], base, bits, moments, dtype, events)
    return base, known, sensitivity.measure(parts, text.ids, base, settings.candidate_bits, moments, known, dtype, events)


def _read(parts: Parts, settings: Settings, source: Path) -> tuple[Recipe, dict[int, Statistics], list[LayerDamage]]:
    """The same from an earlier run's files."""
    found = table.read(source, parts.layers)
    config = read_config(source)
    scheme = next(iter(config.recipes.values())).scheme
    return sensitivity.base_recipe(scheme, list(found[0].keys), settings.group_size), dict(config.known), found


def check(settings: Settings) -> None:
    """Refuse what cannot be done before any work.

    Raises:
        InputError: a value out of range, or files that are there already.
    """
    check_scheme(settings.scheme, "--scheme")
    for bits in settings.candidate_bits:
        check_bits(settings.scheme, bits, "--candidate-bits")
    least = min(settings.candidate_bits) if settings.source is None else 1  # an earlier run had its own
    if not settings.target_bits >= least or settings.target_bits == float("inf"):
        raise InputError(
            f"--target-bits is {settings.target_bits:g}, expected at least {least}, the smallest of --candidate-bits"
        )
    if settings.group_size not in GROUP_SIZES:
        raise InputError(f"--group-size is {settings.group_size}, expected one of {', '.join(map(str, GROUP_SIZES))}")
    if settings.samples is not None and settings.samples < 1:
        raise InputError(f"--n-samples is {settings.samples}, expected at least 1")
    if settings.length < 32:
        raise InputError(f"--seq-len is {settings.length}, expected at least 32")
    if settings.output.exists() and not settings.output.is_dir():
        raise InputError(f"{settings.output} is no directory; choose another -o")
    there = [name for name in (NAME, SENSITIVITY, CURVE, STATISTICS) if (settings.output / name).exists()]
    if there and not settings.overwrite:
        raise InputError(f"{settings.output / there[0]} exists already; choose another -o, or pass --overwrite to replace it")


def default_samples(model: Any, length: int) -> int:
    """How many rows are measured: as many as `SAMPLE_BYTES` allow, from 1 to `MOST_SAMPLES`."""
    return max(1, min(MOST_SAMPLES, int(SAMPLE_BYTES / (weight_bytes(model) * length))))


def weight_bytes(model: Any) -> int:
    """Bytes of all weights."""
    return sum(int(value.nbytes) for value in _weights(model))


def cache_dtype(model: Any) -> mx.Dtype:
    """The type in which a model's caches keep full-precision tokens: that of its 16-bit weights, float32 where there are none."""
    kinds = {value.dtype for value in _weights(model)}
    return next((kind for kind in (mx.bfloat16, mx.float16) if kind in kinds), mx.float32)


def _weights(model: Any) -> list[mx.array]:
    leaves: Any = tree_flatten(model.parameters())
    return [value for _, value in leaves]


def announce(parts: Parts, settings: Settings, text: Tokens, weights: int, events: Events) -> None:
    """Say how long it will take, and how much memory."""
    ids = mx.array(text.ids[:1, :TIMED])
    seconds = 0.0
    for _ in range(2):  # the first pays for what is made once
        start = time.perf_counter()
        parts.forward(ids, make_caches(parts, mx.float32, {}), parts.depth)
        seconds = (time.perf_counter() - start) / ids.shape[1]
    depth = max(parts.depth, 1)
    passes = sum((depth - parts.first(layer.index)) / depth for layer in parts.layers)
    count, length = text.ids.shape
    probes = 2 * len(settings.candidate_bits) * count
    vocabulary = sensitivity.vocabulary(parts)
    logits = 4 * vocabulary * len(sensitivity.probe_positions(length, vocabulary))
    # What a block holds at once is taken as 24 arrays as large as the hidden state.
    memory = weights + 3 * logits + 4 * length * width(parts) * (len(parts.layers) + 24) + 300_000_000
    events.info(
        f"{count} rows of {length} tokens, {len(parts.layers)} layers with a key/value cache; "
        f"expected: about {_duration((passes * probes + 4 * count) * length * seconds)}, {files.size_text(memory)} of memory"
    )


def width(parts: Parts) -> int:
    """Of the hidden state."""
    _, found = parts.logits(mx.zeros((1, 1), mx.int32), make_caches(parts, mx.float32, {}), mx.array([0]), keep=(0,))
    return int(found[0].shape[-1]) if found else 4096


def write(
    settings: Settings, recipes: dict[int, Recipe], known: dict[int, Statistics], found: Sequence[LayerDamage], base: Recipe
) -> Path:
    """Write the files, kv_config.json last; the path of that one."""
    out = settings.output
    files.write_json(out / SENSITIVITY, [table.entry(one) for one in found])
    files.write_json(out / CURVE, table.curve_json(found, base))
    write_config(out / NAME, recipes, known)
    if not known:
        (out / STATISTICS).unlink(missing_ok=True)
    return out / NAME


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(5, round(seconds / 5) * 5)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
