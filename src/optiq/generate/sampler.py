"""Draws tokens from logits. Lazy: nothing here waits for the device, so the next step can be launched at once.

Per token, on float32 logits l of width V, in this order:

    l_v += bias_v                                            logit bias
    l_v  = l_v / r  where l_v > 0, else l_v · r              repetition, v in prompt or reply
    l_v -= presence · [count_v > 0] + frequency · count_v    count_v: how often the reply has used v
    l   /= temperature                                       (0: the largest l, and nothing below counts)
    keep the top k; of those the smallest set with at least top_p of their probability; of those p_v >= min_p · max p
    draw from the softmax of what is left

Source: repetition penalty: Keskar et al. 2019, arXiv 1909.05858, section 4.1, with the sign-aware form that
transformers uses. Presence and frequency: OpenAI API reference. Top-p: Holtzman et al. 2020, arXiv 1904.09751. Min-p:
Nguyen et al. 2024, arXiv 2407.01082. The order is that of transformers and vLLM, which model cards assume.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import mlx.core as mx

from optiq.errors import InputError
from optiq.generate.sampling import Sampling
from optiq.kernels.argmax import argmax


class Sampler:
    """The state of one reply: a key for the draw, and which tokens have been used.

    Args:
        sampling: the settings.
        prompt: the prompt's token ids, which the repetition penalty looks at.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self._settings = sampling
        self._prompt = sorted(set(prompt))
        self._key = mx.random.key(sampling.seed)
        self._counts: mx.array | None = None  # [V] how often the reply has used each token
        self._known: mx.array | None = None  # [V] whether the prompt or the reply has it
        self._bias: mx.array | None = None  # [V]

    def __call__(self, logits: mx.array) -> mx.array:
        """The next token [1] from logits [V], which is remembered as used."""
        settings = self._settings
        if not self._plain:
            logits = self._adjusted(logits.astype(mx.float32))
        if settings.temperature == 0:
            token = argmax(logits[None])
        else:
            self._key, key = mx.random.split(self._key)
            values, indices = narrowed(logits.astype(mx.float32), settings)
            token = mx.random.categorical(values, key=key).reshape(1)
            token = token if indices is None else indices[token]
        if self._counts is not None and self._known is not None:
            self._counts = self._counts.at[token].add(1.0)
            self._known[token] = True
        return token

    def copy(self) -> Sampler:
        """A sampler in the same state, which goes its own way from here."""
        other = copy.copy(self)
        other._known = copy.copy(self._known)  # item assignment changes the array object itself
        return other

    @property
    def _plain(self) -> bool:
        """Whether logits go to the draw as they are."""
        settings = self._settings
        return not settings.logit_bias and not self._counts_matter and settings.repetition_penalty == 1

    @property
    def _counts_matter(self) -> bool:
        return self._settings.presence_penalty != 0 or self._settings.frequency_penalty != 0

    def _adjusted(self, logits: mx.array) -> mx.array:
        """Logits [V] with bias and penalties."""
        if self._counts is None or self._known is None:
            self._begin(logits.shape[-1])
        assert self._counts is not None and self._known is not None
        if self._bias is not None:
            logits = logits + self._bias
        return penalized(logits, self._counts, self._known, self._settings)

    def _begin(self, width: int) -> None:
        self._counts = mx.zeros((width,))
        self._known = mx.zeros((width,), mx.bool_)
        inside = [token for token in self._prompt if token < width]
        if inside:
            self._known[mx.array(inside)] = True
        if self._settings.logit_bias:
            for token in self._settings.logit_bias:
                if not 0 <= token < width:
                    raise InputError(f"logit bias for token {token}, expected an id from 0 to {width - 1}")
            ids, values = mx.array(list(self._settings.logit_bias)), mx.array(list(self._settings.logit_bias.values()))
            self._bias = mx.zeros((width,)).at[ids].add(values.astype(mx.float32))


def penalized(logits: mx.array, counts: mx.array, known: mx.array, settings: Sampling) -> mx.array:
    """Logits [V] after the three penalties.

    Args:
        logits: [V], float32.
        counts: [V], how often the reply has used each token.
        known: [V], whether prompt or reply has it.
        settings: the penalties.
    """
    rate = settings.repetition_penalty
    if rate != 1:
        logits = mx.where(known, mx.where(logits > 0, logits / rate, logits * rate), logits)
    if settings.presence_penalty:
        logits = logits - settings.presence_penalty * (counts > 0)
    if settings.frequency_penalty:
        logits = logits - settings.frequency_penalty * counts
    return logits


def narrowed(logits: mx.array, settings: Sampling) -> tuple[mx.array, mx.array | None]:
    """The logits that the draw sees: those kept by top-k, in falling order where an order was needed, -inf if dropped.

    Args:
        logits: [V], float32.
        settings: temperature above 0, and the three filters.

    Returns:
        Values [K] and their token ids [K], or values [V] and None where every token stays in its place.
    """
    width = logits.shape[-1]
    values = (logits - logits.max()) / settings.temperature  # from the top, so that a tiny temperature cannot overflow
    count = settings.top_k if 0 < settings.top_k < width else width
    indices: mx.array | None = None
    if count < width:
        indices = mx.argpartition(-values, kth=count - 1)[:count]
        values = values[indices]
    if settings.top_p < 1:
        order = mx.argsort(-values)
        indices = order if indices is None else indices[order]
        values = values[order]
        share = mx.softmax(values)
        before = mx.cumsum(share) - share  # what likelier tokens have already; 0 for the first, which always stays
        values = mx.where(before < settings.top_p, values, -math.inf)
    if settings.min_p > 0:
        values = mx.where(values >= math.log(settings.min_p), values, -math.inf)  # the likeliest token stands at 0
    return values, indices
