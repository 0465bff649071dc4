"""The loop against mlx-lm's own, ends, and caches that are used again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import random_models
from optiq.errors import InputError
from optiq.generate.decode import Context, Reply
from optiq.generate.options import Options
from optiq.generate.sampling import Sampling
from optiq.models.load import load_modules

GREEDY = Sampling()
PROMPT = "The history of the sea is"
KINDS = ["llama", "qwen3_5-tied", "gemma3"]  # caches that can be cut, recurrent ones, rotating windows


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Random models in float32, by kind."""
    found = {}
    for kind in KINDS:
        found[kind], _ = load_modules(random_models.write(tmp_path_factory.mktemp(kind), kind))
        found[kind].set_dtype(mx.float32)
    return found


def greedy(context: Context, prompt: list[int], count: int = 8, mark: int = 0, chunk: int = 512) -> list[int]:
    """Tokens after a prompt, from wherever the context stands."""
    done = context.rewind(prompt)
    context.read(prompt[done:-1], chunk, at=mark)
    return list(context.steps(prompt[-1], lambda logits: mx.argmax(logits, keepdims=True), count))


def reply(loaded: tuple[Any, Any], text: str = PROMPT, sampling: Sampling = GREEDY, **options: Any) -> Reply:
    model, tokenizer = loaded
    return Reply(Context(model), tokenizer, tokenizer.encode(text), sampling, Options(**options))


def test_greedy_is_the_argmax_loop_of_mlx_lm(loaded: tuple[Any, Any], tiny_model: Path) -> None:
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    stock, tokenizer = load(str(tiny_model))
    stock.set_dtype(mx.float32)
    prompt = tokenizer.encode(PROMPT)
    expected = [int(token) for token, _ in generate_step(mx.array(prompt), stock, max_tokens=24)]
    mine = reply(loaded, max_tokens=24)
    text = "".join(mine)
    assert mine.ids == expected and text == tokenizer.decode(expected)


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_chunks_of_the_prompt_do_not_matter(models: dict[str, Any], chunk: int) -> None:
    prompt = list(range(3, 30))
    for model in models.values():
        seen: list[tuple[int, int]] = []
        context = Context(model)
        context.read(prompt[:-1], chunk, lambda done, total: seen.append((done, total)))  # noqa: B023
        found = list(context.steps(prompt[-1], lambda logits: mx.argmax(logits, keepdims=True), 8))
        assert found == greedy(Context(model), prompt)
        assert seen[-1] == (26, 26) and len(seen) == -(-26 // chunk)
        assert context.tokens == prompt + found[:-1]  # the last one was never read


def test_ends(loaded: tuple[Any, Any]) -> None:
    whole = reply(loaded, max_tokens=12)
    text = "".join(whole)
    told = whole.statistics
    assert (told.finish, told.tokens, told.stopped_by) == ("length", 12, None)
    assert told.prompt_tokens == len(loaded[1].encode(PROMPT)) and told.cached_tokens == 0
    assert told.prompt_tokens_per_s > 0 and told.decode_tokens_per_s > 0 and told.peak_memory_bytes > 1_000_000

    ender = whole.ids[5]
    stopped = reply(loaded, max_tokens=12, stop_ids=frozenset({ender, 10**6}))
    first = whole.ids.index(ender)
    assert "".join(stopped) == loaded[1].decode(whole.ids[:first])
    assert (stopped.statistics.finish, stopped.statistics.stopped_by) == ("stop", ender)
    assert stopped.ids == whole.ids[: first + 1]

    joint = len(loaded[1].decode(whole.ids[:6]))
    stop = text[joint - 2 : joint + 2]  # over the joint of two tokens
    cut = reply(loaded, max_tokens=12, stops=(stop,))
    assert "".join(cut) == text[: text.index(stop)]
    assert (cut.statistics.finish, cut.statistics.stopped_by) == ("stop", stop)


def test_the_same_seed_gives_the_same_text(loaded: tuple[Any, Any]) -> None:
    warm = Sampling(temperature=1.0, top_k=50, top_p=0.95, presence_penalty=1.0, seed=11)
    texts = ["".join(reply(loaded, sampling=warm, max_tokens=16)) for _ in range(2)]
    other = "".join(reply(loaded, sampling=dataclasses.replace(warm, seed=12), max_tokens=16))
    assert texts[0] == texts[1] != other


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_that_is_used_again_gives_what_a_fresh_one_gives(models: dict[str, Any], kind: str) -> None:
    """A prompt that goes on, one that leaves the path after the mark, one that has nothing in common."""
    context = Context(models[kind])
    first = list(range(3, 40))
    said = greedy(context, first, mark=30)
    goes_on = first + said[:-1] + [50, 51]
    assert context.rewind(goes_on) == len(first) + len(said) - 1
    assert greedy(context, goes_on) == greedy(Context(models[kind]), goes_on)

    leaves = [*first[:33], 60, 61, 62]
    kept = context.rewind(leaves)
    assert kept == (33 if kind == "llama" else 30)
    for _ in range(2):  # the mark can be used more than once
        assert greedy(context, leaves) == greedy(Context(models[kind]), leaves)

    other = [9, 8, 7]
    assert context.rewind(other) == 0
    assert greedy(context, other) == greedy(Context(models[kind]), other)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_step_leaves_nothing_wrong(models: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = models[kind], list(range(3, 40))
    context = Context(model)
    context.read(prompt[:-1], at=30)

    class Interrupted:
        """The model, stopped after two of its layers have moved on."""

        def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
            inner = model.model if hasattr(model, "model") else model.language_model.model
            layers = inner.layers
            hidden = inner.embed_tokens(tokens)
            for layer, entry in list(zip(layers, cache, strict=False))[:2]:
                hidden = layer(hidden, None, entry)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(context.halves, "body", Interrupted())
        next(context.steps(prompt[-1], lambda logits: mx.argmax(logits, keepdims=True), 4))
    assert greedy(context, prompt) == greedy(Context(model), prompt)


def test_a_reader_that_stops_early_leaves_a_context_that_knows_its_tokens(models: dict[str, Any]) -> None:
    for model in models.values():
        context, prompt = Context(model), [3, 4, 5, 6]
        steps = context.steps(prompt[-1], lambda logits: mx.argmax(logits, keepdims=True), 50)
        context.rewind(prompt)
        context.read(prompt[:-1])
        said = [next(steps) for _ in range(3)]
        steps.close()
        assert context.tokens == prompt + said
        goes_on = [*prompt, *said, 7]
        assert greedy(context, goes_on) == greedy(Context(model), goes_on)


def test_an_empty_prompt_is_refused(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match=r"the prompt is empty \(0 tokens\)"):
        Reply(Context(loaded[0]), loaded[1], [], GREEDY, Options())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "--max-tokens is 0, expected a whole number of at least 1"),
        ({"prefill_chunk": -2}, "--prefill-chunk is -2, expected a whole number of at least 1"),
        ({"stops": ("a", "")}, "--stop is empty, expected a text"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Options(**options)
    assert str(error.value) == message
