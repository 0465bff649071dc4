"""Second moments of the inputs of a block's tensors, from a forward pass alone.

Used while a model is being encoded: the hidden states come from the part of the model that is already quantized, so that each
tensor is fitted to the inputs that it will really see. Tokens are weighted as the gradient pass weighted them, where it ran.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from optiq.measure.moments import Moments
from optiq.models.stream import StandIn
from optiq.models.topology import Tensor

TokenWeights = Mapping[str, np.ndarray]


class _InputProbe(StandIn):
    """Stands in a module's place and adds up what goes into it."""

    def __init__(self, tensor: Tensor, module: nn.Module, grams: InputMoments):
        super().__init__(module)
        self._tensor, self._grams = tensor, grams

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        y = self._module(x, *args, **kwargs)
        if self._tensor.kind in ("linear", "head"):
            self._grams.add(self._tensor, x)
        elif self._tensor.kind == "experts":
            indices = args[0] if args else kwargs["indices"]
            self._grams.add(self._tensor, mx.broadcast_to(x, (*indices.shape, 1, x.shape[-1])))
        elif self._tensor.kind == "heads":
            transpose = args[0] if args else kwargs.get("transpose", True)
            if transpose:
                self._grams.add(self._tensor, x)
        return y

    def as_linear(self, x: mx.array) -> mx.array:
        self._grams.add(self._tensor, x)
        return self._module.as_linear(x)


class InputMoments:
    """Gathers grams [I, I] for some tensors over batches of rows.

    Args:
        weights: per tensor the weight of each token [N * L] in row order; tensors without an entry weigh tokens alike.
    """

    def __init__(self, weights: TokenWeights):
        self._weights = weights
        self._range = (0, 0)
        self._found: dict[str, Moments] = {}

    def wrapper(self) -> Callable[[Tensor, nn.Module], Any]:
        """What `Stream.wrap` wants."""
        return lambda tensor, module: _InputProbe(tensor, module, self)

    def batch(self, start: int, stop: int) -> None:
        """Announce that the tokens [start, stop) of the flattened rows come next."""
        self._range = (start, stop)

    def add(self, tensor: Tensor, x: mx.array) -> None:
        x = x.reshape(-1, x.shape[-1]).astype(mx.float32)
        start, stop = self._range
        weights = self._weights.get(tensor.name)
        known = weights is not None and x.shape[0] == stop - start
        w = mx.array(weights[start:stop]) if known and weights is not None else mx.ones((x.shape[0],))
        moments = self._found.setdefault(tensor.name, Moments.zeros(tensor))
        moments.gram = moments.gram + (x * w[:, None]).T @ x
        moments.weight = moments.weight + w.sum()

    def evaluate(self) -> None:
        """Finish the batch's sums."""
        mx.eval([a for m in self._found.values() for a in m.arrays()])

    def grams(self, tensors: Sequence[Tensor]) -> dict[str, mx.array]:
        """Mean outer products per tensor; tensors that nothing went into are missing."""
        return {
            t.name: self._found[t.name].gram / mx.maximum(self._found[t.name].weight, 1e-30)
            for t in tensors
            if t.name in self._found
        }
