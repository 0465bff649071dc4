"""What `kv_quality.py` measures with: the embedded model in parts, text, arms, their bytes, and KL as decoding sees it.

An arm is a recipe for each layer with statistics. A row of text goes through in one pass (`optiq.kv.simulation`: every query
sees each token as a real cache shows it at that moment); `stepped` does the same with real caches, token by token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import harness
import mlx.core as mx
import numpy as np

from optiq.kv import attach, sensitivity, simulation
from optiq.kv.allocation import bytes_per_token, make_items
from optiq.kv.allocation import recipes as recipes_of
from optiq.kv.recipe import Recipe, preset
from optiq.kv.rows import Statistics
from optiq.kv.sensitivity import LayerDamage
from optiq.kv.simulation import packed_counts
from optiq.kv.text import mixed
from optiq.measure.divergence import kl
from optiq.measure.text import samples
from optiq.measure.tokens import Tokens, tokenise
from optiq.models.caches import make_caches
from optiq.models.chat import load_tokenizer
from optiq.models.load import load_modules
from optiq.models.parts import Parts
from optiq.plan.allocate import allocate

DTYPE = mx.bfloat16  # in which caches of the embedded model keep full-precision tokens
BATCH = 12  # rows of 512 tokens
LAST = 64  # tokens over which bytes per token are averaged: packing goes in steps


@dataclass(frozen=True)
class Arm:
    """Recipes and statistics by layer."""

    recipes: Mapping[int, Recipe]
    known: Mapping[int, Statistics] = field(default_factory=dict)


def open_model() -> Parts:
    """The embedded model."""
    return Parts(load_modules(harness.MODEL)[0])


def text(name: str, length: int, rows: int) -> Tokens:
    """Up to so many rows per domain of a packaged set."""
    return tokenise(samples(name), load_tokenizer(harness.MODEL), length, rows, name)


def uniform(parts: Parts, recipe: Recipe, known: Mapping[int, Statistics] | None = None) -> Arm:
    """One recipe for all layers."""
    return Arm({layer.index: recipe for layer in parts.layers}, known or {})


@dataclass
class Reference:
    """Rows [N, L] with full-precision caches."""

    parts: Parts
    batches: list[tuple[mx.array, mx.array, mx.array]]
    length: int

    @classmethod
    def make(cls, parts: Parts, ids: np.ndarray) -> Reference:
        """One pass over all rows; logits and what enters the first layer with a cache are kept."""
        rows, found, first = max(1, BATCH * 512 // ids.shape[1]), [], parts.layers[0].index
        for start in range(0, len(ids), rows):
            part = mx.array(ids[start : start + rows])
            caches = simulation.make_caches(parts, DTYPE, {})
            logits, hidden = parts.logits(part, caches, mx.arange(ids.shape[1]), keep=(first,))
            mx.eval(logits, hidden)
            found.append((part, logits, hidden[first]))
        return cls(parts, found, ids.shape[1])

    def divergence(self, arm: Arm) -> np.ndarray:
        """KL [N, L] in nats, as decoding sees it."""
        found = []
        for part, reference, hidden in self.batches:
            caches = simulation.make_caches(self.parts, DTYPE, arm.recipes, arm.known)
            positions = mx.arange(self.length)
            logits, _ = self.parts.logits(part, caches, positions, self.parts.layers[0].index, hidden)
            value, _ = kl(reference, logits)
            found.append(np.array(value))
            mx.clear_cache()
        return np.maximum(np.concatenate(found), 0.0)


def late(values: np.ndarray) -> np.ndarray:
    """Of KL [N, L], the mean over the second half of each row [N]: contexts of L / 2 to L tokens."""
    return np.asarray(values[:, values.shape[1] // 2 :].mean(1))


def stored_bytes(arm: Arm, found: list[LayerDamage], length: int) -> float:
    """Bytes per token of all layers at `length` tokens, sinks, tail and means counted; room that is not used is not."""
    total = 0.0
    for entry in found:
        recipe = arm.recipes[entry.layer.index]
        packed = sum(bytes_per_token(entry, side, recipe) for side in sensitivity.SIDES)
        full = 2 * entry.heads * (entry.k_width + entry.v_width)
        known = arm.known.get(entry.layer.index)
        mean = 4 * entry.heads * entry.k_width if known and known.key_mean is not None else 0
        counts = packed_counts(recipe, length, recipe.sinks)[-LAST:]
        tokens = np.arange(length - len(counts), length) + 1
        total += float(((counts * packed + (tokens - counts) * full + mean) / tokens).mean())
    return total


def within(
    found: list[LayerDamage], known: Mapping[int, Statistics], budget: float, length: int, sinks: int, tail: int
) -> Arm | None:
    """Ours with these sinks and this tail, widths by the solver, at no more than `budget` bytes per token; None if impossible."""
    base = replace(preset("best", 4), sinks=sinks, tail=tail)
    items = make_items(found, base)
    least = sum(min(option.bytes for option in item.options) for item in items)
    best = None
    for packed in range(int(budget), least - 1, -1):
        arm = Arm(recipes_of(allocate(items, packed), found, base), known)
        if stored_bytes(arm, found, length) <= budget:
            best = arm
            break
    return best


def stepped(ids: np.ndarray, arm: Arm) -> np.ndarray:
    """KL [N, L] of real caches that get one token at a time, float32 throughout."""
    model, _ = load_modules(harness.MODEL)
    model.set_dtype(mx.float32)
    sides = [make_caches(model), attach.make_caches(model, arm.recipes, arm.known)]
    found = []
    for token in range(ids.shape[1]):
        value, _ = kl(*(model(mx.array(ids[:, token : token + 1]), cache=caches) for caches in sides))
        mx.eval(value)
        found.append(np.array(value[:, 0]))
    return np.stack(found, 1)


def calibration(rows: int, length: int) -> np.ndarray:
    """Rows of mixed domains, as `optiq kv-cache` takes them."""
    return mixed(samples("calibration"), load_tokenizer(harness.MODEL), length, rows, "calibration").ids
