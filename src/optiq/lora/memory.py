"""The memory that a training step takes, estimated before it is made.

    weights + 5 x 4 bytes per parameter of the adapters (value, gradient, two moments, best)
    + B L (E per block kept + 3 x the widths of one block's layers) bytes of an activation + logits of one chunk in 2 forms

Without recomputation every block counts as the one does. An estimate: what lies between layers counts through the factor 3,
which was fitted on Qwen3.5's blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
from mlx.utils import tree_flatten

from optiq.events import Events
from optiq.files import size_text
from optiq.kernels.memory import available_bytes
from optiq.lora.learner import CHUNK, Learner
from optiq.lora.settings import Settings
from optiq.models.adapted import expert_layers, linear_layers, weight_shape
from optiq.models.topology import block_list

BETWEEN = 3


def fixed_bytes(learner: Learner, count: int) -> int:
    """What does not depend on the length; `count` parameters of adapters."""
    return weights_held(learner) + 20 * count


def token_bytes(learner: Learner, recompute: bool) -> int:
    """What a token of a batch adds."""
    blocks = list(block_list(learner.model))
    widths = []
    for block in blocks:
        shapes = [weight_shape(layer) for layer in (linear_layers(block) | expert_layers(block)).values()]
        widths.append(BETWEEN * sum(shape[-1] + shape[-2] for shape in shapes))
    kept = len(blocks) * learner.width if recompute else sum(widths)
    return learner.activation_bytes * (kept + max(widths, default=0))


def chunk_bytes(learner: Learner) -> int:
    """Logits of one chunk, their gradient beside them."""
    return CHUNK * learner.vocabulary * 2 * learner.activation_bytes


def longest(learner: Learner, count: int, settings: Settings) -> int:
    """The longest sequence that fits what is available now, by the estimate; at batch size 1."""
    room = available_bytes() - (fixed_bytes(learner, count) + chunk_bytes(learner)) + weights_held(learner)
    return max(0, room // token_bytes(learner, settings.recompute))


def weights_held(learner: Learner) -> int:
    """Weights are in memory already when this is asked, so what is available does not count them."""
    flat: list[tuple[str, mx.array]] = tree_flatten(learner.model.parameters())  # type: ignore[assignment]
    return sum(int(array.nbytes) for _, array in flat)


def predicted(learner: Learner, count: int, settings: Settings) -> int:
    """Bytes at the peak of a step."""
    tokens = settings.batch_size * settings.max_length * (2 if settings.method == "dpo" else 1)
    return fixed_bytes(learner, count) + chunk_bytes(learner) + tokens * token_bytes(learner, settings.recompute)


@contextmanager
def bounded(most_bytes: int) -> Iterator[None]:
    """Keep a CPU to about so many bytes, unless a step needs more.

    There MLX allocates what operations will write when it queues them, up to a hundred ahead of the one that is computed: 3.6 GB
    for 2048 tokens of the 0.8B shapes, where 1.7 GB are enough. Beyond this limit it waits for those it has begun.

    Args:
        most_bytes: all that MLX holds, weights included.
    """
    if mx.default_device().type != mx.DeviceType.cpu:
        yield
        return
    before = mx.set_memory_limit(most_bytes)
    try:
        yield
    finally:
        mx.set_memory_limit(before)


def announce(learner: Learner, count: int, settings: Settings, events: Events) -> None:
    """Say what a run will take, and warn where that is more than there is."""
    mx.eval(learner.model.parameters())
    needed, most = predicted(learner, count, settings), longest(learner, count, settings)
    events.info(f"memory at --max-seq-length {settings.max_length}: about {size_text(needed)}; about {most:,} tokens fit")
    if needed > available_bytes() + weights_held(learner):
        events.warn(
            f"about {size_text(needed)} of memory are needed, {size_text(available_bytes())} are free; lower --max-seq-length"
        )
