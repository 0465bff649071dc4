"""What fewer bits in one layer's keys, or values, cost: KL in nats per token against the full-precision cache.

    damage(layer, side, bits) = mean over positions of KL(p || q),   q: that side of that layer packed, all else as it is

Every token but the sinks is packed (a cache's tail is left out of account, so damages are on the safe side). What comes before
the layer is computed once: a probe runs the layers from its own on. Logits are made at positions spread evenly over a row.
Knows recipes and caches; nothing of budgets or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from optiq.events import QUIET, Events
from optiq.kv import simulation
from optiq.kv.recipe import FULL, Recipe, preset
from optiq.kv.rows import Statistics
from optiq.kv.statistics import Moments
from optiq.measure.divergence import kl
from optiq.models.caches import KeyValueLayer
from optiq.models.parts import Parts

LOGIT_FLOATS = 1 << 26  # logits of one pass: 256 MB
LEAST_GAIN = 0.25  # of a damage: other signs before the rotation change one by up to a fifth
SIDES = ("keys", "values")


@dataclass
class LayerDamage:
    """One layer's damages in nats per token.

    Args:
        layer: which.
        name: its module path.
        heads, k_width, v_width: of its keys and values.
        keys, values: damage by bits.
    """

    layer: KeyValueLayer
    name: str
    heads: int
    k_width: int
    v_width: int
    keys: dict[int, float] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)


def gather(parts: Parts, ids: np.ndarray, dtype: mx.Dtype, events: Events = QUIET) -> dict[int, Moments]:
    """Moments of every layer with a key/value cache, over rows [N, L]."""
    found = {layer.index: Moments() for layer in parts.layers}
    watches = {index: moments.see for index, moments in found.items()}
    with events.stage("statistics", len(ids), "rows") as stage:
        for row in ids:
            caches = simulation.make_caches(parts, dtype, {}, watches=watches)
            parts.forward(mx.array(row[None]), caches, parts.layers[-1].index + 1)
            mx.clear_cache()
            stage.advance()
    return found


def measure(
    parts: Parts,
    ids: np.ndarray,
    base: Recipe,
    bits: Sequence[int],
    moments: Mapping[int, Moments],
    known: Mapping[int, Statistics],
    dtype: mx.Dtype,
    events: Events = QUIET,
) -> list[LayerDamage]:
    """The damages of every layer at every width, over rows [N, L].

    Args:
        base: the recipe whose widths are tried.
        bits: widths.
        moments: as `gather` found them, for the layers' shapes.
        known: statistics by layer; empty for none.
        dtype: in which caches keep full-precision tokens.
    """
    layers = parts.layers
    found = [LayerDamage(layer, parts.names[layer.index], *moments[layer.index].shape) for layer in layers]
    probes = len(layers) * len(SIDES) * len(bits)
    with events.stage("sensitivity", len(ids) * probes, "probes") as stage:
        for row in ids:
            reference = _Reference.make(parts, row, dtype, {parts.first(layer.index) for layer in layers})
            for entry in found:
                for side in SIDES:
                    for width in bits:
                        recipe = one_side(base, side, width)
                        damage = reference.divergence(parts, {entry.layer.index: recipe}, known, True)
                        table = entry.keys if side == "keys" else entry.values
                        table[width] = table.get(width, 0.0) + max(damage, 0.0) / len(ids)
                        stage.advance(note=f"{entry.name} {side} at {width} bits")
    return found


def choose_statistics(
    parts: Parts,
    row: np.ndarray,
    base: Recipe,
    bits: int,
    moments: Mapping[int, Moments],
    dtype: mx.Dtype,
    events: Events = QUIET,
) -> dict[int, Statistics]:
    """Per layer the statistics that pay on one row [L].

    What `Moments` promises a gain of `LEAST_GAIN` for is tried, and kept where it lowers the damage by as much.

    Args:
        bits: the width at which they are compared.
    """
    ways = {layer.index: moments[layer.index].promising(layer, LEAST_GAIN) for layer in parts.layers}
    if not any(keys or values for keys, values in ways.values()):
        return {}
    found: dict[int, Statistics] = {}
    trials = sum(len(side) + 1 for both in ways.values() for side in both if side)
    with events.stage("statistics that pay", trials, "probes") as stage:
        reference = _Reference.make(parts, row, dtype, {parts.first(layer.index) for layer in parts.layers})
        for layer in parts.layers:
            kept = []
            for side, tried in zip(SIDES, ways[layer.index], strict=True):
                both, damages = [Statistics(), *tried] if tried else [Statistics()], [0.0]
                if tried:
                    recipes = {layer.index: one_side(base, side, bits)}
                    damages = [reference.divergence(parts, recipes, {layer.index: way}, True) for way in both]
                    stage.advance(len(both), note=f"{parts.names[layer.index]} {side}")
                best = min(range(len(both)), key=damages.__getitem__)
                kept.append(both[best] if damages[best] <= (1 - LEAST_GAIN) * damages[0] else both[0])
            keys, values = kept
            if keys.key_mean is not None or values.value_mean is not None:
                found[layer.index] = Statistics(keys.key_mean, keys.key_scale, values.value_mean)
    return found


def measure_plan(
    parts: Parts, ids: np.ndarray, recipes: Mapping[int, Recipe], known: Mapping[int, Statistics], dtype: mx.Dtype
) -> tuple[float, float]:
    """KL of recipes in all their layers at once, over rows [N, L]: all tokens packed but the sinks, and as decoding packs."""
    packed = decoding = 0.0
    for row in ids:
        reference = _Reference.make(parts, row, dtype, {parts.first(min(recipes))})
        packed += reference.divergence(parts, recipes, known, True)
        decoding += reference.divergence(parts, recipes, known, False)
    return packed / len(ids), decoding / len(ids)


def one_side(base: Recipe, side: str, bits: int) -> Recipe:
    """A recipe that packs keys or values alone."""
    return replace(base, k_bits=bits, v_bits=FULL) if side == "keys" else replace(base, k_bits=FULL, v_bits=bits)


def base_recipe(scheme: str, bits: Sequence[int], group_size: int) -> Recipe:
    """The preset whose widths are tried."""
    return preset(scheme, max(bits), group_size=group_size)


def probe_positions(length: int, vocabulary: int) -> np.ndarray:
    """Positions whose logits are compared: all, or as many as `LOGIT_FLOATS` allows, evenly spread up to the last."""
    count = max(1, min(length, LOGIT_FLOATS // vocabulary))
    return np.unique(np.linspace(length - 1, length / count - 1, count).round().astype(int))


@dataclass(frozen=True)
class _Reference:
    """One row with full-precision caches: its logits, and what entered some blocks."""

    ids: mx.array
    dtype: mx.Dtype
    positions: mx.array
    logits: mx.array
    hidden: dict[int, mx.array]

    @classmethod
    def make(cls, parts: Parts, row: np.ndarray, dtype: mx.Dtype, keep: set[int]) -> _Reference:
        ids = mx.array(row[None])
        positions = mx.array(probe_positions(len(row), vocabulary(parts)))
        caches = simulation.make_caches(parts, dtype, {})
        logits, hidden = parts.logits(ids, caches, positions, keep=keep)
        mx.eval(logits, hidden)
        return cls(ids, dtype, positions, logits, hidden)

    def divergence(self, parts: Parts, recipes: Mapping[int, Recipe], known: Mapping[int, Statistics], at_once: bool) -> float:
        """Mean KL over the positions with these recipes."""
        start = parts.first(min(recipes))
        caches = simulation.make_caches(parts, self.dtype, recipes, known, at_once)
        logits, _ = parts.logits(self.ids, caches, self.positions, start, self.hidden.get(start))
        value, _ = kl(self.logits, logits)
        found = float(value.mean())
        mx.clear_cache()
        return found


def vocabulary(parts: Parts) -> int:
    """Width of the logits."""
    if parts.vocabulary is None:
        logits, _ = parts.logits(mx.zeros((1, 1), mx.int32), simulation.make_caches(parts, mx.float32, {}), mx.array([0]))
        parts.vocabulary = int(logits.shape[-1])
    return parts.vocabulary
