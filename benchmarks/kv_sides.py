"""One model with caches of several kinds, filled with random vectors, that take turns in decoding: the speed of a cache alone.

In: a model directory and recipes. Out: seconds per token and bytes of each. Knows nothing of bars.

    python benchmarks/kv_sides.py peak MODEL RECIPE TOKENS NEW      (a process of its own: prints its peak resident bytes)
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import optiq  # isort: skip  # before MLX, which it gives a fast BLAS
import mlx.core as mx
import numpy as np

from optiq.generate.decode import Context, peak_resident_bytes
from optiq.kernels.argmax import argmax
from optiq.kv import attach
from optiq.kv.recipe import preset
from optiq.models import caches as stock

FILL = 2048  # tokens that a cache takes in at once
RECIPES = {
    "fp16": None,
    "tq3": ("turbo", 3),
    "tq4": ("turbo", 4),
    "best3": ("best", 3),
    "best4": ("best", 4),
    "affine4": ("affine", 4),
}


def make(model: Any, name: str) -> list[Any]:
    """Fresh caches of a kind in `RECIPES`."""
    named = RECIPES[name]
    return stock.make_caches(model) if named is None else attach.make_caches(model, preset(*named))


def fill(model: Any, caches: list[Any], depth: int) -> None:
    """Random keys and values of `depth` tokens in every key/value cache, and two tokens through the model before and after."""
    model(mx.array([[1, 2]]), cache=caches)
    mx.eval(stock.cache_arrays(caches))
    rng = np.random.default_rng(0)
    for layer in attach.layers(model):
        cache, mixer = caches[layer.place], model.layers[layer.index].self_attn
        heads, width = mixer.num_key_value_heads, mixer.head_dim
        left = depth - 2
        while left > 0:
            count = min(FILL, left)
            shape = (1, heads, count, width)
            k, v = (mx.array(rng.standard_normal(shape, np.float32)).astype(mx.bfloat16) for _ in range(2))
            cache.update_and_fetch(k, v)
            mx.eval(cache.state)
            left -= count


class Side:
    """Caches of one kind at one depth."""

    def __init__(self, model: Any, name: str, depth: int) -> None:
        self.name = name
        self._context = Context(model, lambda model: make(model, name))
        fill(model, self._context.caches, depth)
        self.draw(4)  # whoever has looked at the arrays makes the next step copy them
        self.cache_bytes = sum(self._context.caches[layer.place].nbytes for layer in attach.layers(model))

    def draw(self, count: int) -> float:
        """Seconds per token; the cache grows by so many tokens, which are few beside its depth."""
        start = time.perf_counter()
        for _ in self._context.steps(1, lambda logits: argmax(logits[None]), count):
            pass
        return (time.perf_counter() - start) / count


def decode(model_dir: str, depth: int, names: list[str], repeats: int, new: int) -> dict[str, Any]:
    """Seconds per token of each kind at a depth, sides alternating."""
    model = optiq.load(model_dir)[0]
    sides = [Side(model, name, depth) for name in names]
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for side in sides:
            found[side.name].append(side.draw(new))
    sizes = {side.name: side.cache_bytes for side in sides}
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {"depth": depth, "new_tokens": new, "seconds_per_token": found, "median": medians, "cache_bytes": sizes}


def peak(model_dir: str, name: str, tokens: int, new: int) -> dict[str, Any]:
    """Peak resident bytes of reading a prompt and decoding, in this process, weights and all."""
    model = optiq.load(model_dir)[0]
    context = Context(model, lambda model: make(model, name))
    context.read(np.random.default_rng(0).integers(1, 4000, tokens).tolist(), 512)
    read = peak_resident_bytes()
    for _ in context.steps(1, lambda logits: argmax(logits[None]), new):
        pass
    return {"kind": name, "after_reading": read, "peak_bytes": peak_resident_bytes(), "mlx_peak_bytes": int(mx.get_peak_memory())}


if __name__ == "__main__":
    verb, model_dir, what, first, second = sys.argv[1:6]
    if verb == "peak":
        print(json.dumps(peak(model_dir, what, int(first), int(second))))
    else:
        print(json.dumps(decode(model_dir, int(first), what.split(","), int(second), int(sys.argv[6]))))
