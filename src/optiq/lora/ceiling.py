"""The longest sequence that can be trained on here, measured.

Steps of doubling length are made on random tokens, until the next would not fit or takes too long. Memory grows linearly (blocks
keep their inputs, logits exist by chunks), so the ceiling is where the line through the last two peaks meets what is available.
Data in: settings. Data out: `Ceiling`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from optiq.errors import ResourceError
from optiq.events import QUIET, Events
from optiq.files import size_text
from optiq.kernels.memory import available_bytes
from optiq.lora import batches, memory
from optiq.lora import ranks as ranking
from optiq.lora import targets as targeting
from optiq.lora.data import Sample
from optiq.lora.learner import Learner, Parameters, fresh
from optiq.lora.settings import Settings
from optiq.models import load
from optiq.models.hub import resolve

SHORTEST, LONGEST, SECONDS = 256, 1 << 17, 60.0


@dataclass(frozen=True)
class Ceiling:
    """What was measured.

    Args:
        steps: (length, peak bytes, tokens per second) of each.
        length: tokens that fit, read off the line; never less than the longest that was measured.
        available_bytes: what had to do.
    """

    steps: tuple[tuple[int, int, float], ...]
    length: int
    available_bytes: int


def measure(settings: Settings, events: Events = QUIET) -> Ceiling:
    """Find the ceiling of a training run; its data are not read.

    Raises:
        ResourceError: not even the shortest fits.
    """
    path = resolve(settings.model)
    room = available_bytes()
    model, _ = load.load_modules(path)
    targets = targeting.find(model, settings.target_modules, settings.num_layers)
    ranks = ranking.choose(targets, settings.rank_scaling, settings.rank, ranking.damages_of(path), settings.param_budget)
    learner = Learner(model, targets, {name: settings.scale_of(rank) for name, rank in ranks.items()}, settings.recompute)
    parameters = fresh(targets, ranks, settings.seed, settings.dora)
    steps: list[tuple[int, int, float]] = []
    length = SHORTEST
    while length <= LONGEST:
        asked = replace(settings, max_length=length, batch_size=1, method="sft")
        with memory.bounded(memory.predicted(learner, targeting.parameters(targets, ranks), asked)):
            peak, seconds = _step(learner, parameters, length)
        steps.append((length, peak, length / seconds))
        events.info(f"{length} tokens: {size_text(peak)}, {length / seconds:.0f} tokens per second")
        if _line(steps, 2 * length) > room or 2 * seconds > SECONDS:
            break
        length *= 2
    if steps[0][1] > room:
        raise ResourceError(f"{SHORTEST} tokens take {size_text(steps[0][1])}, available: {size_text(room)}; use a smaller model")
    return Ceiling(tuple(steps), _longest(steps, room), room)


def _step(learner: Learner, parameters: Parameters, length: int) -> tuple[int, float]:
    """Peak bytes and seconds of one step forward and back."""
    tokens = tuple(np.random.default_rng(length).integers(1, learner.vocabulary, length + 1).tolist())
    batch = batches.collate([Sample("random", tokens, (False, *[True] * length))], packing=True)

    def loss(parameters: Parameters) -> mx.array:
        return learner.losses(parameters, learner.hidden(parameters, batch), batch).mean()

    mx.reset_peak_memory()
    start = time.perf_counter()
    mx.eval(mx.value_and_grad(loss)(parameters))
    return int(mx.get_peak_memory()), time.perf_counter() - start


def _line(steps: list[tuple[int, int, float]], length: int) -> float:
    """The peak that the last two foretell for a length."""
    if len(steps) < 2:
        return 0.0
    (one, low, _), (two, high, _) = steps[-2:]
    return high + (high - low) * (length - two) / (two - one)


def _longest(steps: list[tuple[int, int, float]], room: int) -> int:
    if len(steps) < 2 or steps[-1][1] <= steps[-2][1]:
        return steps[-1][0]
    (one, low, _), (two, high, _) = steps[-2:]
    return max(two, int(two + (room - high) * (two - one) / (high - low)))
