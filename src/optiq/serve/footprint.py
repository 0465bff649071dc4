"""What caches of a kind take for a model, measured on the caches themselves with tokens of zeros; the model runs once."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from optiq.models.caches import Caches, cache_arrays, cache_kind, make_caches
from optiq.serve.memory import GROW_TOKENS, Footprint

PROBE = 4 * GROW_TOKENS  # tokens; more than any recipe keeps in full precision

Shapes = list[tuple[tuple[mx.array, mx.array] | None, int]]


def shapes(model: Any) -> Shapes:
    """Per layer: one token's keys and values where it has such a cache, and the bytes of its state where not."""
    caches = make_caches(model)
    mx.eval(model(mx.array([[0, 0]]), cache=caches), cache_arrays(caches))
    found: Shapes = []
    for cache in caches:
        keys, values = getattr(cache, "keys", None), getattr(cache, "values", None)
        if cache_kind(cache) == "state" or not isinstance(keys, mx.array) or not isinstance(values, mx.array):
            found.append((None, int(cache.nbytes)))
        else:
            found.append(((mx.zeros_like(keys[:1, :, :1]), mx.zeros_like(values[:1, :, :1])), 0))
    return found


def measure(caches: Caches, layers: Shapes) -> Footprint:
    """The bytes of these caches.

    Args:
        caches: fresh; used up.
        layers: of the model that they were made for.
    """
    sizes = [0, 0]
    fixed = sum(state for _, state in layers)
    for cache, (example, _) in zip(caches, layers, strict=True):
        if example is None:
            continue
        for step in (0, 1):
            keys, values = (mx.repeat(x, PROBE, axis=2) for x in example)
            cache.update_and_fetch(keys, values)
            mx.eval(cache_arrays([cache]))
            sizes[step] += int(cache.nbytes)
    per_token = (sizes[1] - sizes[0]) / PROBE
    return Footprint(fixed + max(0, round(sizes[0] - per_token * PROBE)), per_token)
