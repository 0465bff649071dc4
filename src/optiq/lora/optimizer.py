"""AdamW over trees of float32 arrays, and the clipping of gradients. Pure functions: what they need is given and returned.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      w <- w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + d w)

Beside mlx.optimizers, whose AdamW keeps step and moments inside of an object: a run that goes on to the same bits wants them as
what they are, a number and trees like the parameters', saved and compared with them (`optiq.lora.state`).

Source: arXiv 1711.05101, algorithm 2; b1 = 0.9, b2 = 0.999, eps = 1e-8 as there and in PyTorch.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

B1, B2, EPS = 0.9, 0.999, 1e-8


def norm(gradients: Any) -> mx.array:
    """The length of all gradients together."""
    flat: list[tuple[str, mx.array]] = tree_flatten(gradients)  # type: ignore[assignment]
    squares = [array.astype(mx.float32).square().sum() for _, array in flat]
    return mx.sqrt(mx.stack(squares).sum())


def clipped(gradients: Any, length: mx.array, most: float) -> Any:
    """Gradients scaled down to a length.

    Args:
        gradients: a tree.
        length: theirs.
        most: the largest; 0 leaves them as they are.
    """
    if not most:
        return gradients
    factor = mx.minimum(1.0, most / (length + 1e-6))
    return tree_map(lambda g: g * factor, gradients)


def adamw(parameters: Any, gradients: Any, first: Any, second: Any, step: int, lr: float, decay: float) -> tuple[Any, Any, Any]:
    """One step.

    Args:
        parameters: w.
        gradients: g.
        first: m.
        second: v.
        step: t, from 1.
        lr: learning rate.
        decay: d.

    Returns:
        w, m and v after it.
    """
    first = tree_map(lambda m, g: B1 * m + (1 - B1) * g, first, gradients)
    second = tree_map(lambda v, g: B2 * v + (1 - B2) * g * g, second, gradients)
    fix1, fix2 = 1 - B1**step, 1 - B2**step
    updated = tree_map(lambda w, m, v: w - lr * (m / fix1 / (mx.sqrt(v / fix2) + EPS) + decay * w), parameters, first, second)
    return updated, first, second
