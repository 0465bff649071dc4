"""Speed, size and divergence of every kind of key/value cache over the length of the context: `optiq bench --kv-curve`.

At each length the 16-bit cache reads a prompt of the model's own text and continues it greedily; every other kind reads the
same prompt and is then given the same tokens one by one, so that its logits can be compared with the 16-bit ones at the
same places. Repetitions go round all kinds in turn. Data in: a model. Data out: rows; `generate.curve_files` writes them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from optiq.errors import InputError
from optiq.events import QUIET, Events
from optiq.generate.decode import Context
from optiq.kernels import loss
from optiq.kernels.argmax import argmax
from optiq.kv import attach
from optiq.kv.recipe import Recipe, preset
from optiq.models.caches import Caches, make_caches, wired

SCALES = (1.0, 1.5, 2.25, 3.0)  # of the base prompt, as the TurboQuant document has them
CONTEXTS = (4096, 8192, 16384, 32768, 65536)  # more lengths, as far as the model goes
BASE = 1024

Make = Callable[[Any], Caches]


@dataclass(frozen=True)
class CurvePlan:
    """What is measured.

    Args:
        lengths: tokens of the prompts, each at least 2.
        generate: tokens after each, at least 2; the first is not timed.
        repeats: at least 1.
        prefill_chunk: tokens of the prompt per step, at least 1.
        seed: of the prompts.
    """

    lengths: tuple[int, ...]
    generate: int = 32
    repeats: int = 3
    prefill_chunk: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 2 or self.generate < 2 or self.repeats < 1 or self.prefill_chunk < 1:
            raise InputError(
                f"a curve over {self.lengths or 'no lengths'} with {self.generate} tokens and {self.repeats} repeats; expected "
                "prompts of at least 2 tokens, at least 2 tokens after them, at least 1 repeat"
            )


@dataclass(frozen=True)
class Sample:
    """One kind at one length, once; `kl_nats` is the mean over the generated tokens."""

    kind: str
    prompt_tokens: int
    repeat: int
    prompt_tokens_per_s: float
    decode_tokens_per_s: float
    cache_bytes: int
    kl_nats: float


def lengths(context: int | None, most: int | None = None, base: int = BASE) -> tuple[int, ...]:
    """The prompt scales of `base` and the longer contexts, up to what the model was made for and `most`."""
    limit = min(x for x in (context, most, CONTEXTS[-1]) if x is not None)
    found = sorted({*(round(base * scale) for scale in SCALES), *CONTEXTS})
    return tuple(length for length in found if length <= limit)


def kinds(model: Any) -> dict[str, Make]:
    """Every kind of cache by its name; the first is the reference."""
    places = [layer.index for layer in attach.layers(model)]

    def packed(recipes: Recipe | Mapping[int, Recipe]) -> Make:
        return lambda model: attach.make_caches(model, recipes)

    found: dict[str, Make] = {"fp16": make_caches}
    found |= {f"tq{bits}": packed(preset("turbo", bits)) for bits in (4, 3)}
    if len(places) > 2:  # the first and the last layer with a cache in full precision
        found["tq3-adaptive"] = packed(dict.fromkeys(places[1:-1], preset("turbo", 3)))
    found |= {f"affine{bits}": packed(preset("affine", bits)) for bits in (8, 4)}
    return found | {f"best{bits}": packed(preset("best", bits)) for bits in (4, 3)}


def measure(model: Any, ids: Sequence[int], plan: CurvePlan, events: Events = QUIET) -> list[Sample]:
    """All samples.

    Args:
        model: as `optiq.models.load` gives it.
        ids: text of at least the longest prompt; each prompt is its beginning.
        plan: what to measure.
        events: where progress goes.

    Raises:
        InputError: the text is too short.
        ModelError: the model has no key/value caches, or MLA latents.
    """
    if len(ids) < max(plan.lengths):
        raise InputError(f"the text has {len(ids)} tokens, expected at least {max(plan.lengths)} for the longest prompt")
    made, found = kinds(model), []
    with wired(), events.stage("measure", total=plan.repeats * len(plan.lengths) * len(made), unit="runs") as stage:
        _sample(model, "warm", make_caches, ids[: min(plan.lengths)], plan, 0, None)
        for length in plan.lengths:
            reference: tuple[list[int], mx.array] | None = None
            for repeat in range(plan.repeats):
                for kind, make in made.items():
                    sample, tokens, logits = _sample(model, kind, make, ids[:length], plan, repeat, reference)
                    reference = reference or (tokens, logits)
                    found.append(sample)
                    stage.advance(note=f"{kind}, {length} tokens")
    return found


def _sample(
    model: Any,
    kind: str,
    make: Make,
    prompt: Sequence[int],
    plan: CurvePlan,
    repeat: int,
    reference: tuple[list[int], mx.array] | None,
) -> tuple[Sample, list[int], mx.array]:
    """One run; its tokens and their logits [N, V]. Tokens are the reference's where there is one."""
    context, start = Context(model, make), time.perf_counter()
    context.read(prompt[:-1], plan.prefill_chunk)
    given = None if reference is None else reference[0]
    token, tokens, rows, begun = int(prompt[-1]), [], [], 0.0
    for count in range(plan.generate):
        row = model(mx.array([[token]]), cache=context.caches)[0, -1]
        mx.eval(row)
        if count == 0:
            begun = time.perf_counter()
        token = int(argmax(row).item()) if given is None else given[count]
        tokens.append(token)
        rows.append(row)
    end = time.perf_counter()
    logits = mx.stack(rows)
    kl = 0.0 if reference is None else float(loss.divergence(reference[1], logits).mean())
    rates = (len(prompt) / (begun - start), (plan.generate - 1) / (end - begun))
    return Sample(kind, len(prompt), repeat, *rates, context.bytes, kl), tokens, logits


def summary(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Medians by length and kind, with the speed over the 16-bit cache's."""
    found: list[dict[str, Any]] = []
    for length in sorted({sample.prompt_tokens for sample in samples}):
        full = 0.0
        for kind in dict.fromkeys(sample.kind for sample in samples):
            rows = [asdict(sample) for sample in samples if (sample.kind, sample.prompt_tokens) == (kind, length)]
            row = {key: statistics.median(r[key] for r in rows) for key in rows[0] if key not in ("kind", "repeat")}
            full = full or row["decode_tokens_per_s"]
            found.append({"kind": kind, **row, "speed_over_fp16": row["decode_tokens_per_s"] / full, "repeats": len(rows)})
    return found


def repeated(ids: Sequence[int], count: int) -> list[int]:
    """A text of `count` tokens: `ids` again and again, each time from another place on, so that it does not repeat in step."""
    pool, found, at = np.asarray(ids), [], 0
    while len(found) < count:
        found += np.roll(pool, -at).tolist()
        at += 997  # a prime
    return found[:count]
