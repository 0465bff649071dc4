"""Second moments at one quantizable tensor, gathered by a probe while a model runs forward and backward.

For a linear layer y = W x, an error D in W changes the model's output distribution by (second order at the minimum, tokens
and outputs taken as independent; the Hessian of KL at zero is the Fisher information)

    KL per token  ~  1/2 E_t[ (delta_t . D x_t)^2 ]  ~  1/2 sum_i row_i D_i gram D_i^T

where delta_t is the gradient of the log-likelihood of a label drawn from the model itself, summed over positions. `row` is
E_t[delta_ti^2] and `gram` the second moment of x, each token weighted by its |delta_t|^2, so that tokens on which the loss does
not depend do not count. A table lookup has the roles exchanged: row is how often an entry is read, gram = E[delta delta^T].

Shapes: O rows and I columns of the tensor, X experts or heads: row [O] or [X, O], gram [I, I].

Source: quantization notes section 2 (GGN / Fisher); token weights as in GuidedQuant (arXiv 2505.07004) with one group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from optiq.models.stream import StandIn
from optiq.models.topology import Tensor


@dataclass
class Moments:
    """Running sums for one tensor and one of its uses.

    Args:
        row: sum over tokens of the squared gradient of each row (or the number of reads, for a lookup).
        gram: weighted sum of outer products.
        weight: sum of the weights in `gram`.
    """

    row: mx.array
    gram: mx.array
    weight: mx.array

    @classmethod
    def zeros(cls, tensor: Tensor) -> Moments:
        return cls(mx.zeros(tensor.shape[:-1]), mx.zeros((tensor.shape[-1],) * 2), mx.zeros(()))

    def add(self, row: mx.array, vectors: mx.array, weights: mx.array) -> None:
        """Add row sums and weighted outer products of `vectors` [n, I] with `weights` [n]."""
        self.row = self.row + row
        self.gram = self.gram + (vectors * weights[:, None]).T @ vectors
        self.weight = self.weight + weights.sum()

    def arrays(self) -> list[mx.array]:
        return [self.row, self.gram, self.weight]


@dataclass
class Sink:
    """Where probes put what they see: per tensor name the moments of each use, and the token weights in order of arrival.

    Args:
        uses: running sums by tensor and use.
        token_weights: parts of [N * L] weights.
        exact_rows: tensors whose row weights are added from elsewhere (the head, where the expectation is known).
    """

    uses: dict[str, dict[str, Moments]] = field(default_factory=dict)
    token_weights: dict[str, list[mx.array]] = field(default_factory=dict)
    exact_rows: set[str] = field(default_factory=set)

    def moments(self, tensor: Tensor, use: str) -> Moments:
        return self.uses.setdefault(tensor.name, {}).setdefault(use, Moments.zeros(tensor))

    def arrays(self) -> list[mx.array]:
        """Everything that has to be evaluated after a batch."""
        sums = [array for uses in self.uses.values() for moments in uses.values() for array in moments.arrays()]
        return sums + [array for parts in self.token_weights.values() for array in parts]

    def linear(self, tensor: Tensor, x: mx.array, delta: mx.array) -> None:
        x, squares = _flat(x), _flat(delta).square()
        weights = squares.sum(-1)
        self.token_weights.setdefault(tensor.name, []).append(weights)
        row = mx.zeros(tensor.shape[:-1]) if tensor.name in self.exact_rows else squares.sum(0)
        self.moments(tensor, "product").add(row, x, weights)

    def lookup(self, tensor: Tensor, ids: mx.array, delta: mx.array) -> None:
        ids = ids.reshape(-1)
        reads = mx.zeros(tensor.shape[:1]).at[ids].add(mx.ones(ids.shape))
        self.moments(tensor, "lookup").add(reads, _flat(delta), mx.ones(ids.shape))

    def experts(self, tensor: Tensor, x: mx.array, indices: mx.array, delta: mx.array) -> None:
        x = _flat(mx.broadcast_to(x, (*indices.shape, 1, x.shape[-1])))
        squares, chosen = _flat(delta).square(), indices.reshape(-1)
        weights = squares.sum(-1)
        self.token_weights.setdefault(tensor.name, []).append(weights)
        self.moments(tensor, "product").add(mx.zeros(tensor.shape[:-1]).at[chosen].add(squares), x, weights)

    def heads(self, tensor: Tensor, x: mx.array, delta: mx.array, transpose: bool) -> None:
        heads = tensor.shape[0]
        x = mx.broadcast_to(x, (*delta.shape[:-1], x.shape[-1]))  # one latent may serve all heads
        x, delta = (a.reshape(-1, heads, *a.shape[-2:]) for a in (x, delta))
        outer, inner = (delta, x) if transpose else (x, delta)
        squares = outer.square()
        weights = squares.sum(-1).reshape(-1) if transpose else mx.ones((inner.size // inner.shape[-1],))
        self.moments(tensor, "product").add(squares.sum((0, 2)), _flat(inner), weights)


class Probe(StandIn):
    """Stands in a module's place, computes what it computes, and tells a sink what went in and which gradient came back."""

    def __init__(self, tensor: Tensor, module: nn.Module, sink: Sink):
        super().__init__(module)
        self._tensor, self._sink = tensor, sink
        self.offset: mx.array | None = None

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        tensor, sink = self._tensor, self._sink
        y = self._module(x, *args, **kwargs)
        if tensor.kind == "embedding":
            if self.offset is not None:
                y = y + self.offset
            return _watched(y, lambda delta: sink.lookup(tensor, x, delta))
        if tensor.kind == "experts":
            indices = args[0] if args else kwargs["indices"]
            return _watched(y, lambda delta: sink.experts(tensor, x, indices, delta))
        if tensor.kind == "heads":
            transpose = args[0] if args else kwargs.get("transpose", True)
            return _watched(y, lambda delta: sink.heads(tensor, x, delta, transpose))
        return _watched(y, lambda delta: sink.linear(tensor, x, delta))

    def as_linear(self, x: mx.array) -> mx.array:
        return _watched(self._module.as_linear(x), lambda delta: self._sink.linear(self._tensor, x, delta))


def _watched(y: mx.array, see: Any) -> mx.array:
    """The same value; when a gradient comes back through it, `see` gets that gradient."""

    @mx.custom_function
    def through(value: mx.array) -> mx.array:
        return value * 1.0

    @through.vjp
    def through_vjp(primals: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        see(cotangent)
        return cotangent

    return through(y)


def _flat(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1]).astype(mx.float32)
