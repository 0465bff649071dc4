"""Statistics of a layer's keys, values and queries, from text: what is taken away from vectors, and how keys are scaled.

    key_mean    mu      the mean over tokens. Exact: softmax does not see q . mu, whatever mu is; codes then hold k - mu alone.
                        Channels that turn with the position have it where it holds at every position that was seen.
    key_scale   t_i     = (Var k_i / E q_i^2)^(1/4), geometric mean 1: the least E (q . error)^2 where rotation spreads the
                        error of k / t evenly over the channels. Exact in full precision. One value per rotary pair.
    value_mean          the mean over tokens, given back after the sum.

The first tokens (sinks), which stay in full precision, do not count.
Source: quantization notes, section 5; the optimum of sum(E q_i^2 t_i^2) sum(Var k_j / t_j^2) is Cauchy-Schwarz's equality.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from optiq.kv.recipe import SINKS
from optiq.kv.rows import Statistics
from optiq.models.caches import KeyValueLayer

SEGMENTS = 4  # of a row, in each of which a mean has to help
LARGEST_SCALE = 8.0  # of one channel against the others: bounds what an estimate from little text can do

Floats = npt.NDArray[np.float64]


@dataclass
class Moments:
    """Running sums of one layer, filled through `see`."""

    tokens: int = 0
    key: list[Floats] = field(default_factory=list)  # by segment [G, D]
    key_square: list[Floats] = field(default_factory=list)
    query_square: Floats | None = None
    value: Floats | None = None
    value_square: Floats | None = None

    def see(self, queries: mx.array, keys: mx.array, values: mx.array) -> None:
        """Add queries [B, H, L, D], keys [B, G, L, D] and values [B, G, L, Dv] of whole rows."""
        groups, length = keys.shape[1], keys.shape[2]
        first = SINKS if length > 4 * SINKS else 0
        k, v, q = (x[:, :, first:].astype(mx.float32) for x in (keys, values, queries))
        edges = np.linspace(0, length - first, SEGMENTS + 1).astype(int)
        parts = [k[:, :, a:b] for a, b in zip(edges, edges[1:], strict=False)]
        sums = [part.sum((0, 2)) for part in parts]
        squares = [part.square().sum((0, 2)) for part in parts]
        share = q.shape[1] // groups
        asked = q.square().reshape(q.shape[0], groups, share, -1, q.shape[3]).sum((0, 2, 3)) / share
        given, strong = v.sum((0, 2)), v.square().sum((0, 2))
        mx.eval(sums, squares, asked, given, strong)
        self.key = _added(self.key, [np.array(x, np.float64) for x in sums])
        self.key_square = _added(self.key_square, [np.array(x, np.float64) for x in squares])
        self.query_square = np.array(asked, np.float64) + (0 if self.query_square is None else self.query_square)
        self.value = np.array(given, np.float64) + (0 if self.value is None else self.value)
        self.value_square = np.array(strong, np.float64) + (0 if self.value_square is None else self.value_square)
        self.tokens += keys.shape[0] * (length - first)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Key/value heads, width of keys, width of values."""
        assert self.value is not None
        return (*self.key[0].shape, self.value.shape[1])

    def promising(self, layer: KeyValueLayer, gain: float) -> tuple[list[Statistics], list[Statistics]]:
        """For keys and for values, the statistics that promise to lower the squared error of scores, or values, by `gain`."""
        assert self.query_square is not None and self.value is not None and self.value_square is not None
        full = self.statistics(layer)
        mean, energy = self.key_mean(layer), np.sum(self.key_square, axis=0) / self.tokens
        variance, query = self._key_variance(mean), self.query_square / self.tokens
        centred = float(1 - (variance.sum(1) / energy.sum(1)).min())
        scaled = float(1 - (np.sqrt(variance * query).sum(1) ** 2 / (energy.sum(1) * query.sum(1))).min())
        value = float((np.square(self.value / self.tokens).sum(1) / (self.value_square / self.tokens).sum(1)).max())
        keys = [Statistics(full.key_mean)] if centred >= gain else []
        keys += [Statistics(full.key_mean, full.key_scale)] if scaled >= gain else []
        return keys, [Statistics(value_mean=full.value_mean)] if value >= gain else []

    def statistics(self, layer: KeyValueLayer) -> Statistics:
        """All of them."""
        assert self.query_square is not None and self.value is not None
        mean = self.key_mean(layer)
        variance = self._key_variance(mean)
        return Statistics(
            mx.array(mean, mx.float32),
            mx.array(scale(_tied(variance, layer), _tied(self.query_square / self.tokens, layer)), mx.float32),
            mx.array(self.value / self.tokens, mx.float32),
        )

    def _key_variance(self, mean: Floats) -> Floats:
        """E (k - mean)^2, [G, D]."""
        found = np.sum(self.key_square, axis=0) / self.tokens - 2 * mean * np.sum(self.key, axis=0) / self.tokens + mean**2
        return np.asarray(np.maximum(found, 0))

    def key_mean(self, layer: KeyValueLayer) -> Floats:
        """[G, D]: zero in channels whose mean depends on the position."""
        mean = np.asarray(np.sum(self.key, axis=0) / self.tokens)
        each = self.tokens / SEGMENTS
        helps = np.all([2 * mean * part / each > mean**2 for part in self.key], axis=0)
        turning = np.arange(mean.shape[1]) < (mean.shape[1] if layer.rotary is None else layer.rotary)
        return np.asarray(np.where(turning & ~helps, 0.0, mean))


def scale(variance: Floats, query_square: Floats) -> Floats:
    """t [G, D] of the module's docstring."""
    least = (
        1e-6 * np.maximum(variance.mean(1, keepdims=True), 1e-30),
        1e-6 * np.maximum(query_square.mean(1, keepdims=True), 1e-30),
    )
    log = np.log(np.maximum(variance, least[0]) / np.maximum(query_square, least[1])) / 4
    log -= log.mean(1, keepdims=True)
    limit = np.log(LARGEST_SCALE)
    return np.asarray(np.exp(np.clip(log, -limit, limit)))


def _tied(x: Floats, layer: KeyValueLayer) -> Floats:
    """The mean over each rotary pair in both its places."""
    width = layer.rotary or 0
    if width < 2 or width % 2:
        return x
    x, half = x.copy(), width // 2
    pairs = (slice(0, width, 2), slice(1, width, 2)) if layer.interleaved else (slice(0, half), slice(half, width))
    mean = (x[:, pairs[0]] + x[:, pairs[1]]) / 2
    x[:, pairs[0]], x[:, pairs[1]] = mean, mean
    return x


def _added(old: list[Floats], new: list[Floats]) -> list[Floats]:
    return [a + b for a, b in zip(old, new, strict=True)] if old else new
