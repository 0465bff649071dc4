"""One MLX side of `cpu.py` in a process of its own: `ours` (loaded by optiq) or `stock` (mlx-lm alone, optiq never imported).

    python benchmarks/cpu_worker.py ours|stock

One JSON request per line on stdin, one JSON reply per line on stdout:

    {"do": "about"}                                              -> versions, kernels, threads
    {"do": "load", "model": DIR}                                 -> {}
    {"do": "read", "tokens": N}                                  -> {"seconds": …}  from empty caches to the first new token
    {"do": "fill", "depth": N}                                   -> {"cache_bytes": …, "state_bytes": …, "seconds": …}
    {"do": "decode", "tokens": N}                                -> {"seconds": …}  from the filled caches, the same each time
    {"do": "dense", "dtype": "bfloat16", "shape": [M, K, N]}     -> {"seconds": …}  of one linear(x [M, K], w [N, K])
    {"do": "train", "model": DIR, "ids": FILE.npy}               -> {"seconds": …, "loss": …, "gradient_norm": …}

Nothing but the sides' own libraries is imported, so that `stock` is what a user of mlx-lm has.
"""

# ruff: noqa: E402 (optiq goes first)

from __future__ import annotations

import copy
import json
import math
import sys
import time
from functools import cache
from typing import Any

SIDE = sys.argv[1] if len(sys.argv) > 1 else "ours"
if SIDE == "ours":
    import optiq  # before MLX, which it gives a fast BLAS

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

CHUNK = 512  # tokens of the prompt per step, as in llama.cpp's default
FILL_SECONDS = 0.5  # repeated products
VOCABULARY = 4000  # ids are drawn below this, in every tokenizer's range


def open_model(model_dir: str) -> Any:
    """The model as this side loads it."""
    if SIDE == "ours":
        return optiq.load(model_dir)[0]
    from mlx_lm import load

    return load(model_dir)[0]


class Stock:
    """Generation as mlx-lm's own loop does it: chunks without logits, then steps launched one ahead."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.clear()

    def clear(self) -> None:
        """Empty caches."""
        from mlx_lm.models.cache import make_prompt_cache

        self.caches: list[Any] = make_prompt_cache(self._model)

    def read(self, ids: list[int]) -> None:
        """Let the caches see tokens."""
        for start in range(0, len(ids), CHUNK):
            self._model(mx.array([ids[start : start + CHUNK]]), cache=self.caches)
            mx.eval([cache.state for cache in self.caches])

    def draw(self, last: int, count: int) -> None:
        """Draw the greedy tokens after `last`."""
        token = self._step(mx.array([last]))
        for i in range(count):
            following = self._step(token) if i + 1 < count else None
            token.item()
            token = following

    def _step(self, token: mx.array) -> mx.array:
        drawn = mx.argmax(self._model(token[None], cache=self.caches)[0, -1:], axis=-1)
        mx.async_eval(drawn)
        return drawn


class Ours:
    """Generation as `optiq generate` does it; the only place that knows how."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.clear()

    def clear(self) -> None:
        """Empty caches."""
        from optiq.generate.decode import Context

        self._context = Context(self._model)

    @property
    def caches(self) -> list[Any]:
        return self._context.caches

    @caches.setter
    def caches(self, caches: list[Any]) -> None:
        self._context.caches = caches

    def read(self, ids: list[int]) -> None:
        """Let the caches see tokens."""
        self._context.read(ids, CHUNK)

    def draw(self, last: int, count: int) -> None:
        """Draw the greedy tokens after `last`."""
        from optiq.kernels.argmax import argmax

        for _ in self._context.steps(last, lambda logits: argmax(logits[None]), count):
            pass


def marked(caches: list[Any]) -> list[Any]:
    """What it takes to come back to the caches as they are now: lengths of those that can be cut, copies of the others."""
    return [entry.offset if entry.is_trimmable() else copy.deepcopy(entry) for entry in caches]


def restored(caches: list[Any], mark: list[Any]) -> list[Any]:
    """The caches as they were; the mark stays usable."""
    found = []
    for entry, kept in zip(caches, mark, strict=True):
        if isinstance(kept, int):
            entry.trim(entry.offset - kept)
        found.append(entry if isinstance(kept, int) else copy.deepcopy(kept))
    return found


class Side:
    """The requests."""

    def __init__(self) -> None:
        self._engine: Stock | Ours | None = None
        self._mark: list[Any] = []

    @property
    def engine(self) -> Stock | Ours:
        if self._engine is None:
            raise SystemExit("no model: send load first")
        return self._engine

    def about(self) -> dict[str, Any]:
        """Versions, and which kernels compute."""
        found: dict[str, Any] = {"side": SIDE, "mlx": mx.__version__, "optiq": "optiq" in sys.modules}
        if SIDE == "ours":
            from optiq.kernels import blas, native

            found["blas"] = {name: value for name, value in vars(blas.preload()).items() if name != "path"}
            found["kernels"] = vars(native.choice())
        return found

    def load(self, model: str) -> dict[str, Any]:
        """Open a model and read two tokens with it: lazy weights are in memory afterwards."""
        self._engine = {"ours": Ours, "stock": Stock}[SIDE](open_model(model))
        self._engine.draw(1, 1)
        return {}

    def read(self, tokens: int) -> dict[str, float]:
        """Seconds from empty caches to the first drawn token."""
        ids = tokens_of(tokens)
        self.engine.clear()
        start = time.perf_counter()
        self.engine.read(ids[:-1])
        self.engine.draw(ids[-1], 1)
        return {"seconds": time.perf_counter() - start}

    def fill(self, depth: int) -> dict[str, float]:
        """Caches that have seen `depth` tokens and one more, which makes room for the next; their bytes by kind."""
        start = time.perf_counter()
        self.engine.clear()
        self.engine.read(tokens_of(depth))
        self.engine.draw(1, 1)
        self._mark = marked(self.engine.caches)
        sizes = cache_sizes(self.engine.caches)
        self.engine.draw(1, 1)  # whoever has looked at the arrays makes the next step copy them
        return sizes | {"seconds": time.perf_counter() - start}

    def decode(self, tokens: int) -> dict[str, float]:
        """Seconds of drawing tokens from the filled caches."""
        self.engine.caches = restored(self.engine.caches, self._mark)
        start = time.perf_counter()
        self.engine.draw(1, tokens)
        return {"seconds": time.perf_counter() - start}

    def dense(self, dtype: str, shape: list[int]) -> dict[str, float]:
        """Seconds of one product, averaged over as many as fill `FILL_SECONDS` after one that warms up."""
        layer, x = operands(dtype, *shape)
        mx.eval(layer(x))
        count, start = 0, time.perf_counter()
        while count < 2 or time.perf_counter() - start < FILL_SECONDS:
            mx.eval(layer(x))
            count += 1
        return {"seconds": (time.perf_counter() - start) / count}

    def train(self, model: str, ids: str) -> dict[str, float]:
        """Seconds of one step forward and back in float32, its loss in nats per token, the norm of the gradient."""
        module, step = training(model)
        tokens = mx.array(np.load(ids))
        mx.eval(tokens)
        start = time.perf_counter()
        loss, gradients = step(module, tokens)
        mx.eval(loss, gradients)
        seconds = time.perf_counter() - start
        squares = [array.square().sum() for _, array in tree_flatten(gradients)]
        return {"seconds": seconds, "loss": loss.item(), "gradient_norm": math.sqrt(mx.stack(squares).sum().item())}


def tokens_of(count: int) -> list[int]:
    """The same random ids each time."""
    return np.random.default_rng(0).integers(1, VOCABULARY, count).tolist()


def cache_sizes(caches: list[Any]) -> dict[str, int]:
    """Bytes of keys and values of the tokens seen, without room for later ones, and of states of fixed size."""
    sizes = {"cache_bytes": 0, "state_bytes": 0}
    for entry in caches:
        arrays = [array for _, array in tree_flatten([entry.state]) if isinstance(array, mx.array)]
        if offset := getattr(entry, "offset", 0):  # [B, G, room, D]
            sizes["cache_bytes"] += sum(array.nbytes * min(offset, array.shape[2]) // array.shape[2] for array in arrays)
        else:
            sizes["state_bytes"] += sum(array.nbytes for array in arrays)
    return sizes


@cache
def operands(dtype: str, rows: int, inner: int, columns: int) -> tuple[nn.Module, mx.array]:
    """A linear layer without bias [N, K] and its input [M, K], normal."""
    kind = getattr(mx, dtype)
    layer = nn.Linear(inner, columns, bias=False)
    if SIDE == "ours":
        from optiq.models.layers import use_kernels

        use_kernels(layer)
    layer.weight = mx.random.normal((columns, inner)).astype(kind)
    x = mx.random.normal((rows, inner)).astype(kind)
    mx.eval(layer.weight, x)
    return layer, x


@cache
def training(model_dir: str) -> tuple[nn.Module, Any]:
    """The model in float32 and in training mode; a function that gives loss and gradients."""
    model = open_model(model_dir)
    model.update(tree_map(lambda array: array.astype(mx.float32), model.parameters()))
    model.train()
    mx.eval(model.parameters())

    if SIDE == "ours":
        from optiq.kernels.loss import cross_entropy
    else:
        from mlx.nn.losses import cross_entropy

    def loss(model: nn.Module, tokens: mx.array) -> mx.array:
        return cross_entropy(model(tokens)[:, :-1], tokens[:, 1:]).mean()

    return model, nn.value_and_grad(model, loss)


def main() -> None:
    """Answer requests until stdin ends."""
    side = Side()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(side, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
