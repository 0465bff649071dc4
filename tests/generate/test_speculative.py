"""Guessing changes no text: greedy and sampled, with any drafter, over many prompts; and the distribution is the sampler's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import random_models
from optiq.generate.decode import Context, Reply
from optiq.generate.depth import Depth
from optiq.generate.drafter import Draw, HeadDrafter
from optiq.generate.options import Options
from optiq.generate.sampler import Sampler
from optiq.generate.sampling import Sampling
from optiq.generate.speculative import Speculation
from optiq.kernels import native
from optiq.measure.text import samples
from optiq.models import layers
from optiq.models.caches import cache_arrays
from optiq.models.forward import Halves
from optiq.models.load import load, load_modules
from optiq.models.mtp_head import Drafting, load_head

GREEDY = Sampling()
SETTINGS = {
    "greedy": GREEDY,
    "penalties": Sampling(presence_penalty=1.0, frequency_penalty=0.3, repetition_penalty=1.2, logit_bias={7: 2.0}),
    "sampled": Sampling(temperature=1.0, seed=3),
    "filtered": Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, presence_penalty=0.5, seed=11),
}


class Scripted:
    """Guesses from a known reply, wrongly at every `miss`-th place.

    Args:
        text: prompt and reply.
        miss: 0 for never wrong, 1 for always.
    """

    bytes = 0

    def __init__(self, text: list[int], miss: int) -> None:
        self._text, self._miss = text, miss
        self.read: list[int] = []

    def seen(self, tokens: mx.array, hidden: mx.array) -> None:
        assert hidden.shape[:2] == (1, tokens.size)
        self.read += tokens.tolist()

    @staticmethod
    def draft(rows: Sequence[Scripted], last: mx.array, count: int, draw: Draw) -> mx.array:
        return mx.stack([row._guesses(last[place].item(), count) for place, row in enumerate(rows)])

    def _guesses(self, last: int, count: int) -> mx.array:
        at = len(self.read) + 1
        assert self._text[: at - 1] == self.read and self._text[at - 1] == last
        right = [self._text[place] if place < len(self._text) else 5 for place in range(at, at + count)]
        wrong = [self._miss and place % self._miss == 0 for place in range(at, at + count)]
        return mx.array([token + 1 if bad else token for token, bad in zip(right, wrong, strict=True)])

    def rewind(self, length: int) -> None:
        del self.read[length:]


@pytest.fixture(scope="module")
def coded(tiny_model: Path) -> tuple[Any, Any]:
    """The embedded model in 4 bits, as it is used, and its tokenizer."""
    model, tokenizer = load(tiny_model)
    nn.quantize(model, 64, 4, class_predicate=lambda _, layer: hasattr(layer, "to_quantized"))
    layers.use_kernels(model)
    return model, tokenizer


def prompts() -> list[str]:
    """The beginnings of 200 packaged texts that the model has not seen."""
    found = []
    for sample in [*samples("dev"), *samples("score")]:
        found.append(sample.text if sample.text is not None else str((sample.messages or ())[-1]["content"]))
    return [text[:160] for text in (found * 2)[:200]]


def reply(
    context: Context, tokenizer: Any, ids: list[int], sampling: Sampling, depth: Depth | None = None, most: int = 24
) -> Reply:
    context.rewind([0])  # nothing is kept of an earlier one
    made = Reply(context, tokenizer, ids, sampling, Options(max_tokens=most), depth=depth)
    for _ in made:
        pass
    return made


def test_greedy_text_is_the_same_on_200_prompts(coded: tuple[Any, Any], tiny_model: Path) -> None:
    model, tokenizer = coded
    plain, guessing = Context(model), Context(model, drafter=HeadDrafter(Drafting(load_head(tiny_model, model), Halves(model))))
    accepted = drafted = 0
    for number, text in enumerate(prompts()):
        ids = tokenizer.encode(text)
        expected = reply(plain, tokenizer, ids, GREEDY, most=12)
        found = reply(guessing, tokenizer, ids, GREEDY, Depth(1 + number % 4, fixed=True), most=12)
        assert found.ids == expected.ids, text
        told = found.statistics.speculation
        assert told is not None and told.forwards + told.accepted >= len(found.ids)
        accepted, drafted = accepted + told.accepted, drafted + told.drafted
    assert accepted > drafted / 5


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("miss", [0, 1, 3])
def test_settings_penalties_and_seeds(coded: tuple[Any, Any], name: str, miss: int) -> None:
    model, tokenizer = coded
    ids = tokenizer.encode("The history of the sea is")
    expected = reply(Context(model), tokenizer, ids, SETTINGS[name])
    drafter = Scripted([*ids, *expected.ids], miss)
    found = reply(Context(model, drafter=drafter), tokenizer, ids, SETTINGS[name], Depth(3, fixed=True))
    assert found.ids == expected.ids
    told = found.statistics.speculation
    assert told is not None
    assert (told.accepted == told.drafted) if miss == 0 else told.accepted == 0 if miss == 1 else 0 < told.accepted < told.drafted
    if miss == 0:
        assert told.forwards == 6  # 24 tokens by fours


def test_the_head_with_every_setting(coded: tuple[Any, Any], tiny_model: Path) -> None:
    model, tokenizer = coded
    drafting = Drafting(load_head(tiny_model, model), Halves(model), 2048)
    for sampling in SETTINGS.values():
        for text in ("What is the sea?", "def area(radius):"):
            ids = tokenizer.encode(text)
            expected = reply(Context(model), tokenizer, ids, sampling, most=40)
            found = reply(Context(model, drafter=HeadDrafter(drafting)), tokenizer, ids, sampling, Depth(), most=40)
            assert found.ids == expected.ids


@pytest.mark.parametrize("kind", ["llama", "qwen3_5-tied", "qwen3_5-moe", "gemma3"])
def test_other_caches_and_layers(kind: str, tmp_path: Path) -> None:
    model, _ = load_modules(random_models.write(tmp_path, kind))
    model.set_dtype(mx.float32)
    prompt, sampler = list(range(3, 30)), Sampling()
    context = Context(model)
    context.read(prompt[:-1])
    expected = list(context.steps(prompt[-1], Sampler(sampler), 20))
    guessing = Context(model, drafter=Scripted([*prompt, *expected], 3))
    guessing.read(prompt[:-1])
    found = list(Speculation(guessing, Depth(2, fixed=True)).steps(prompt[-1], Sampler(sampler), 20))
    assert found == expected
    text = [*prompt, *expected]
    assert guessing.tokens == text[: len(guessing.tokens)] and guessing.drafter.read == text[: len(guessing.drafter.read)]  # type: ignore[union-attr]


def test_a_context_goes_on_after_guesses(coded: tuple[Any, Any], tiny_model: Path) -> None:
    """Turns: what was read stays, a stop ends the reading, and a reader who leaves early leaves a context that is whole."""
    model, tokenizer = coded
    drafting = Drafting(load_head(tiny_model, model), Halves(model))
    first = tokenizer.encode("The sea is")
    whole = reply(Context(model), tokenizer, first, GREEDY).ids
    stop = next(token for place, token in enumerate(whole) if place > 3 and token not in whole[:place])
    cut = whole[: whole.index(stop) + 1]
    context = Context(model, drafter=HeadDrafter(drafting))
    made = Reply(context, tokenizer, first, GREEDY, Options(stop_ids=frozenset([stop])), depth=Depth(4, fixed=True))
    assert "".join(made) == tokenizer.decode(cut[:-1]) and made.ids == cut
    assert context.tokens == [*first, *cut][: len(context.tokens)]
    second = [*first, *cut, *tokenizer.encode(" and the sky")]
    again = Reply(context, tokenizer, second, GREEDY, Options(max_tokens=8), depth=Depth(2, fixed=True))
    text = "".join(again)
    assert again.statistics.cached_tokens >= len(first) + len(cut) - 1
    assert text == tokenizer.decode(reply(Context(model), tokenizer, second, GREEDY, most=8).ids)
    steps = Speculation(context, Depth(3, fixed=True)).steps(5, Sampler(GREEDY), 20)
    next(steps)
    steps.close()
    assert reply(context, tokenizer, first, GREEDY, Depth(2, fixed=True)).ids == whole


def test_draws_after_guesses_follow_the_distribution(tmp_path: Path) -> None:
    """Chi-square of second tokens, whose guesses are right and wrong in turn, against the model's own probabilities."""
    model, _ = load_modules(random_models.write(tmp_path, "llama", vocab_size=16))
    model.set_dtype(mx.float32)
    halves, prompt, draws = Halves(model), [3, 1, 4, 1, 5], 1500
    fixed = 7  # the first token is biased to this one, so that the second has one distribution
    logits = 6 * halves.head(halves.body(mx.array([[*prompt, fixed]]), None))[0, -1]
    shares = np.array(mx.softmax(logits))
    counts = np.zeros(16)
    model.lm_head.weight = model.lm_head.weight * 6
    for seed in range(draws):
        context = Context(model, drafter=Scripted([*prompt, fixed, int(np.argmax(shares)), 2], 0))
        context.read(prompt[:-1])
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        inner = Speculation(context, Depth(2, fixed=True))
        first = _Biased(sampler, fixed)
        ids = list(inner.steps(prompt[-1], first, 3))  # type: ignore[arg-type]
        counts[ids[1]] += 1
    chi = float(((counts - draws * shares) ** 2 / (draws * shares)).sum())
    assert chi < 37.7  # 15 degrees of freedom, one in a thousand
    assert shares.max() > 0.09 and counts.max() < draws


class _Biased:
    """A sampler whose first draw is a given token."""

    def __init__(self, inner: Sampler, first: int | None) -> None:
        self._inner, self._first = inner, first

    def __call__(self, logits: mx.array) -> mx.array:
        first, self._first = self._first, None
        return self._inner(logits) if first is None else mx.array([first])

    def copy(self) -> _Biased:
        return _Biased(self._inner.copy(), self._first)

    def rollback(self, count: int) -> None:
        self._inner.rollback(count)


@pytest.mark.skipif(native.module() is None, reason="the native kernels were not built here")
def test_memory_stays_flat(coded: tuple[Any, Any], tiny_model: Path) -> None:
    model, tokenizer = coded
    context = Context(model, drafter=HeadDrafter(Drafting(load_head(tiny_model, model), Halves(model))))
    context.read(tokenizer.encode("Once upon a time there was a"))
    steps = Speculation(context, Depth(2, fixed=True)).steps(9, Sampler(GREEDY), 240)
    sizes = []
    for place, _ in enumerate(steps):
        if place in (60, 230):
            mx.eval(cache_arrays(context.caches))
            sizes.append(mx.get_active_memory())
    assert sizes[1] < sizes[0] + 1_000_000
