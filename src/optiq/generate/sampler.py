"""Draws tokens from logits, for one row or for many at once: what a row draws does not depend on its neighbours.

Per token, on float32 logits l of width V, in this order:

    l_v  = -inf where a grammar forbids v                    mask
    l_v += bias_v                                            logit bias
    l_v  = l_v / r  where l_v > 0, else l_v · r              repetition, v in prompt or reply
    l_v -= presence · [count_v > 0] + frequency · count_v    count_v: how often the reply has used v
    temperature, top-k, top-p, min-p                         `optiq.generate.narrow`
    the first token whose running sum of probabilities passes a uniform number of the row's own

With temperature 0 it is the largest l, and the last two lines do not count. The uniform numbers are a function of the row's
seed and the token's place in the reply, so going back and drawing again draws the same. Greedy rows and rows with top-k are
lazy: nothing waits for the device, and the next step can be launched at once. Rows with neither wait for their logits.

Source: repetition penalty: Keskar et al. 2019, arXiv 1909.05858, section 4.1, with the sign-aware form that transformers uses.
Presence and frequency: OpenAI API reference. Uniform numbers: SplitMix64, Steele et al. 2014, doi 10.1145/2714064.2660195.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from optiq.errors import InputError
from optiq.generate import narrow
from optiq.generate.distribution import Distribution, pick
from optiq.generate.sampling import Sampling
from optiq.generate.used import Used
from optiq.kernels.argmax import argmax

Mask = NDArray[np.bool_]  # [V], which tokens may come

LEAST_PENALTY = 1e-6  # of repetition: decides as any smaller one does, and no logit divided by it leaves float32
_BITS = (1 << 64) - 1


class Sampler:
    """The state of one reply: how many tokens it has and, where a penalty asks, which.

    Args:
        sampling: the settings.
        prompt: the prompt's token ids, which the repetition penalty looks at.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self.settings = sampling
        repeats = sampling.repetition_penalty != 1
        self.prompt = np.unique(np.asarray(prompt if repeats else (), np.int32))
        counts = repeats or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self.used = Used() if counts else None
        self.waiting: list[mx.array] = []  # drawn tokens [1] that `used` has not got yet, for their numbers may not be there
        self._length = 0

    def __len__(self) -> int:
        """How many tokens were drawn or taken."""
        return self._length

    def __call__(self, logits: mx.array, mask: Mask | None = None) -> mx.array:
        """The next token [1] from logits [V], which is remembered as used."""
        return draw_rows([self], logits[None], [mask])

    def distribution(self, logits: mx.array, mask: Mask | None = None) -> Distribution:
        """What the next token would be drawn from, without drawing; `take` then says which it is.

        Args:
            logits: [V].
            mask: which tokens may come.
        """
        return distributions([self], logits[None], [mask])[0]

    def take(self, token: int) -> None:
        """Go on by a token that was chosen elsewhere."""
        self.settle()
        self._length += 1
        if self.used is not None:
            self.used.add(token)

    def drawn(self, token: mx.array) -> None:
        """Go on by a token [1] that need not be computed yet."""
        self._length += 1
        if self.used is not None:
            self.waiting.append(token)

    def rollback(self, count: int) -> None:
        """Take back the last tokens.

        Raises:
            ValueError: more than there were.
        """
        if not 0 <= count <= self._length:
            raise ValueError(f"{count} tokens to take back of {self._length}")
        self.settle()
        self._length -= count
        if self.used is not None:
            self.used.take_back(count)

    def copy(self) -> Sampler:
        """A second state that goes its own way from here, with the same uniform numbers."""
        self.settle()
        other = Sampler(self.settings)
        other.prompt, other._length = self.prompt, self._length
        other.used = None if self.used is None else self.used.copy()
        return other

    def uniform(self, purpose: int = 0) -> float:
        """A number in [0, 1) of 53 random bits, for the token that comes next.

        Args:
            purpose: 0 for the draw itself; others are independent of it and of each other.
        """
        return (_mixed(_mixed(_mixed(self.settings.seed) ^ self._length) ^ purpose) >> 11) / (1 << 53)

    def settle(self, most: int = 0) -> None:
        """Ask for the numbers of drawn tokens until at most so many are waiting."""
        while len(self.waiting) > most:
            assert self.used is not None
            self.used.add(int(self.waiting.pop(0).item()))

    @property
    def plain(self) -> bool:
        """Whether logits go to the draw as they are."""
        return not self.settings.logit_bias and self.used is None


def draw_rows(samplers: Sequence[Sampler], logits: mx.array, masks: Sequence[Mask | None] | None = None) -> mx.array:
    """The next token of each row, which its sampler remembers as used; what each would draw alone.

    Args:
        samplers: one per row, each of them once.
        logits: [B, V], any float type.
        masks: one or None per row; None for no masks at all.

    Returns:
        [B] uint32, lazy where all rows are greedy or have top-k.
    """
    groups = _groups(samplers, logits, masks)
    parts = [_DRAWS[kind]([samplers[row] for row in rows], x) for kind, rows, x in groups]
    tokens = parts[0]
    if len(parts) > 1:
        order = np.argsort(np.concatenate([rows for _, rows, _ in groups]))
        tokens = mx.concatenate(parts)[mx.array(order)]
    for row, sampler in enumerate(samplers):
        sampler.drawn(tokens[row : row + 1])
    return tokens


def distributions(
    samplers: Sequence[Sampler], logits: mx.array, masks: Sequence[Mask | None] | None = None
) -> list[Distribution]:
    """What the next token of each row would be drawn from; nothing is drawn and nothing remembered.

    For the places of a draft, give copies of one sampler that have taken the tokens before each place.

    Args:
        samplers, logits, masks: as `draw_rows`.
    """
    found: dict[int, Distribution] = {}
    for kind, rows, x in _groups(samplers, logits, masks):
        settings = [samplers[row].settings for row in rows]
        if kind in ("plain", "greedy"):
            group = [Distribution.certain(int(token)) for token in argmax(x).tolist()]
        elif kind == "top":
            both = narrow.top_weights(x, settings)
            mx.eval(both)
            weights, ids = map(np.asarray, both)
            group = [Distribution.shares(w, i.astype(np.int64)) for w, i in zip(weights, ids, strict=True)]
        else:
            group = [Distribution.shares(narrow.full_weights(row, s)) for row, s in zip(np.asarray(x), settings, strict=True)]
        found.update(zip(rows, group, strict=True))
    return [found[row] for row in range(len(samplers))]


def _groups(
    samplers: Sequence[Sampler], logits: mx.array, masks: Sequence[Mask | None] | None
) -> list[tuple[str, list[int], mx.array]]:
    """Rows that can share work: how they are drawn, which they are, and their logits, adjusted where that changes them."""
    masks = [None] * len(samplers) if masks is None else masks
    found: dict[tuple[Any, ...], list[int]] = {}
    for row, (sampler, mask) in enumerate(zip(samplers, masks, strict=True)):
        found.setdefault(_group(sampler, mask, logits.shape[-1]), []).append(row)
    groups = []
    for (kind, *_), rows in found.items():
        x = logits if len(found) == 1 else logits[mx.array(rows)]
        if kind != "plain":
            x = adjusted([samplers[row] for row in rows], x, [masks[row] for row in rows])
        groups.append((kind, rows, x))
    return groups


def _group(sampler: Sampler, mask: Mask | None, width: int) -> tuple[Any, ...]:
    """Rows with the same answer are drawn together."""
    settings = sampler.settings
    if settings.temperature == 0:
        return ("plain",) if sampler.plain and mask is None else ("greedy", mask is None)
    return ("top", narrow.kept(settings.top_k), mask is None) if 0 < settings.top_k < width else ("full", mask is None)


def _draw_top(samplers: Sequence[Sampler], x: mx.array) -> mx.array:
    weights, ids = narrow.top_weights(x, [sampler.settings for sampler in samplers])
    sums = mx.cumsum(weights, axis=-1)
    # 23 bits: in float32 the product then stays below the sum, and so within the candidates.
    shares = [int(sampler.uniform() * (1 << 23)) / (1 << 23) for sampler in samplers]
    place = (sums <= mx.array(shares, mx.float32)[:, None] * sums[:, -1:]).sum(-1, keepdims=True)
    last = ids.shape[-1] - 1  # beyond which nothing may be read, though logits be no numbers
    return mx.take_along_axis(ids, mx.minimum(place, last), -1)[:, 0].astype(mx.uint32)


def _draw_full(samplers: Sequence[Sampler], x: mx.array) -> mx.array:
    weights = [narrow.full_weights(row, sampler.settings) for sampler, row in zip(samplers, np.asarray(x), strict=True)]
    return mx.array([pick(row, sampler.uniform()) for sampler, row in zip(samplers, weights, strict=True)], mx.uint32)


def _draw_greedy(samplers: Sequence[Sampler], x: mx.array) -> mx.array:
    return argmax(x)


_DRAWS = {"plain": _draw_greedy, "greedy": _draw_greedy, "top": _draw_top, "full": _draw_full}


def adjusted(samplers: Sequence[Sampler], logits: mx.array, masks: Sequence[Mask | None]) -> mx.array:
    """Logits [B, V] in float32 with masks, biases and penalties.

    Args:
        samplers: one per row.
        logits: [B, V], any float type; they stay as they are.
        masks: one per row, or None in all rows.

    Raises:
        InputError: a bias for a token that there is not.
    """
    x = logits.astype(mx.float32)
    if masks[0] is not None:
        x = x + mx.array(_barred(np.stack([mask for mask in masks if mask is not None])))
    x = _biased(x, samplers)
    for sampler in samplers:
        sampler.settle(1)
    rates, presences, frequencies = (
        mx.array([getattr(sampler.settings, name) for sampler in samplers], mx.float32)
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
    )
    rows, ids, _ = _places(x, samplers, "repetition_penalty", neutral=1)
    if rows.size:
        value, rate = x[rows, ids], mx.maximum(rates[rows], LEAST_PENALTY)
        x[rows, ids] = mx.where(value > 0, value / rate, value * rate)
    rows, ids, _ = _places(x, samplers, "presence_penalty")
    if rows.size:
        x[rows, ids] = x[rows, ids] - presences[rows]
    rows, ids, counts = _places(x, samplers, "frequency_penalty")
    return x.at[rows, ids].subtract(frequencies[rows] * counts) if rows.size else x


def _mixed(state: int) -> int:
    """One step of SplitMix64: 64 bits to 64 bits."""
    state = (state + 0x9E3779B97F4A7C15) & _BITS
    state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _BITS
    state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _BITS
    return state ^ state >> 31


def _barred(allowed: Mask) -> NDArray[np.float32]:
    """0 where a token may come, else -inf: the bits of -inf, or none of them, many times as fast as a choice of two."""
    return ((allowed.astype(np.uint32) - np.uint32(1)) & np.uint32(0xFF800000)).view(np.float32)


def _biased(x: mx.array, samplers: Sequence[Sampler]) -> mx.array:
    """Logits [B, V] with each row's bias."""
    entries = [(row, token, value) for row, s in enumerate(samplers) for token, value in s.settings.logit_bias.items()]
    if not entries:
        return x
    rows, ids, values = zip(*entries, strict=True)
    for token in ids:
        if not 0 <= token < x.shape[-1]:
            raise InputError(f"logit bias for token {token}, expected an id from 0 to {x.shape[-1] - 1}")
    return x.at[mx.array(rows), mx.array(ids)].add(mx.array(values, mx.float32))


def _places(x: mx.array, samplers: Sequence[Sampler], penalty: str, neutral: float = 0) -> tuple[mx.array, mx.array, mx.array]:
    """Where the tokens that a penalty looks at stand in x [B, V]: rows, ids and counts in the reply, [n] each.

    A token may stand there twice, in the prompt (count 0) or waiting (count 1), and among the used ones.
    """
    rows, ids, counts = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    late: list[mx.array] = []
    late_rows: list[int] = []
    for row, sampler in enumerate(samplers):
        if sampler.used is None or getattr(sampler.settings, penalty) == neutral:
            continue
        if penalty == "repetition_penalty":
            inside = sampler.prompt[: np.searchsorted(sampler.prompt, x.shape[-1])]
            ids, counts = [*ids, inside], [*counts, np.zeros(len(inside), np.float32)]
            rows.append(np.full(len(inside), row, np.int32))
        ids, counts = [*ids, sampler.used.ids], [*counts, sampler.used.counts]
        rows.append(np.full(len(sampler.used.ids), row, np.int32))
        late += [token.astype(mx.int32) for token in sampler.waiting]
        late_rows += [row] * len(sampler.waiting)
    return (
        mx.array(np.concatenate([*rows, np.array(late_rows, np.int32)])),
        mx.concatenate([mx.array(np.concatenate(ids)), *late]),
        mx.array(np.concatenate([*counts, np.ones(len(late), np.float32)])),
    )
