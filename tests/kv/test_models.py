"""Packed caches under whole models: what comes out, contexts that go back, batches, and the commands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.cli.main import main
from optiq.generate.decode import Context
from optiq.kv import attach
from optiq.kv.cache import PackedCache
from optiq.kv.config import write_config
from optiq.kv.options import CacheOptions
from optiq.kv.recipe import Recipe, preset
from optiq.models.caches import cache_bytes, make_caches
from optiq.models.load import load_modules

KINDS = ["llama", "qwen3_5-tied", "gemma3"]  # every layer, one of four behind recurrent ones, sliding windows of 16
RECIPES = [preset("affine", 8, group_size=32), preset("turbo", 4), preset("best", 8)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Random models in float32, by kind."""
    found = {}
    for kind in KINDS:
        found[kind], _ = load_modules(random_models.write(tmp_path_factory.mktemp(kind), kind))
        found[kind].set_dtype(mx.float32)
    return found


def logits(model: Any, caches: list[Any], *parts: list[int]) -> np.ndarray:
    """Of the last token of the last part, read part by part."""
    for part in parts:
        found = model(mx.array([part]), cache=caches)
    return np.array(found[0, -1])


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """KL in nats between two rows of logits."""
    p, q = (x - np.log(np.exp(x - x.max()).sum()) - x.max() for x in (a.astype(np.float64), b.astype(np.float64)))
    return float((np.exp(p) * (p - q)).sum())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.scheme)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_near_those_of_full_caches(models: dict[str, Any], kind: str, recipe: Recipe) -> None:
    model, tokens = models[kind], [3 + 7 * i % 120 for i in range(150)]
    parts = [tokens[:60], tokens[60:140], *([t] for t in tokens[140:])]
    expected = logits(model, make_caches(model), *parts)
    caches = attach.make_caches(model, recipe)
    found = logits(model, caches, *parts)
    assert any(isinstance(cache, PackedCache) for cache in caches)
    bound = (1e-3 if recipe.scheme == "turbo" else 1e-5) * (100 if kind == "gemma3" else 1)  # windows of few keys average little
    assert 0 < divergence(expected, found) < bound
    # Chunks do not matter beyond when tokens are packed.
    whole = logits(model, attach.make_caches(model, recipe), tokens)
    assert divergence(whole, found) < bound
    kept = dataclasses.replace(preset("best", 4), tail=200)
    np.testing.assert_allclose(logits(model, attach.make_caches(model, kept), *parts), expected, atol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.scheme)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_are_the_rows_alone(models: dict[str, Any], kind: str, recipe: Recipe) -> None:
    """Rows of 2, 90 and 140 tokens join, one more later, one leaves: each gets the logits that it gets as a batch of one."""
    model = models[kind]
    prompts = [[5, 6], [3 + i % 100 for i in range(90)], [9 + 3 * i % 90 for i in range(140)], [7] * 20]
    rows = []
    for prompt in prompts:
        rows.append(attach.make_caches(model, recipe))
        logits(model, rows[-1], prompt)

    def merged(chosen: list[list[Any]]) -> list[Any]:
        return [caches[0].merge(list(caches)) for caches in zip(*chosen, strict=True)]

    alone = [merged([row]) for row in rows]
    batch, later = merged(rows[:3]), merged(rows[3:])

    def step(caches: list[Any], tokens: list[int], members: list[int]) -> None:
        found = np.array(model(mx.array(tokens)[:, None], cache=caches)[:, -1])
        for row, token, member in zip(found, tokens, members, strict=True):
            expected = np.array(model(mx.array([[token]]), cache=alone[member])[0, -1])
            np.testing.assert_allclose(row, expected, atol=2e-4)

    step(batch, [11, 12, 13], [0, 1, 2])
    step(batch, [14, 15, 16], [0, 1, 2])
    for cache, other in zip(batch, later, strict=True):
        cache.extend(other)
    step(batch, [17, 18, 19, 20], [0, 1, 2, 3])
    for cache in batch:
        cache.filter([0, 3])
    step(batch, [21, 22], [0, 3])
    single = [cache.extract(1) for cache in batch]
    step(single, [23], [3])
    assert single[-1].offset == 23


def greedy(context: Context, prompt: list[int], count: int = 6, mark: int = 0) -> np.ndarray:
    """Logits of the steps after a prompt, from wherever the context stands."""
    done, seen = context.rewind(prompt), []

    def draw(row: mx.array) -> mx.array:
        seen.append(row)
        return mx.argmax(row, keepdims=True)

    context.read(prompt[done:-1], at=mark)
    list(context.steps(prompt[-1], draw, count))
    return np.array(mx.stack(seen))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.scheme)
@pytest.mark.parametrize("kind", KINDS)
def test_a_context_goes_back(models: dict[str, Any], kind: str, recipe: Recipe) -> None:
    """As with full caches: to any place where layers can be cut, to the mark where they cannot."""

    def make(model: Any) -> list[Any]:
        return attach.make_caches(model, recipe)

    model = models[kind]
    context, first = Context(model, make), [3 + i % 90 for i in range(120)]
    greedy(context, first, mark=100)
    leaves = [*first[:110], 60, 61, 62]
    kept = context.rewind(leaves)
    assert kept == (110 if kind == "llama" else 100)
    for _ in range(2):  # the mark can be used more than once
        found, fresh = greedy(context, leaves), greedy(Context(model, make), leaves)
        assert max(divergence(a, b) for a, b in zip(fresh, found, strict=True)) < (5e-3 if recipe.scheme == "turbo" else 5e-5)
    assert context.rewind([9, 8, 7]) == 0
    assert context.bytes == cache_bytes(context.caches) < cache_bytes(Context(model, make).caches) + 10**6


def test_a_sliding_window_keeps_no_more_than_it_shows(models: dict[str, Any]) -> None:
    model = models["gemma3"]
    caches = attach.make_caches(model, preset("turbo", 4))
    logits(model, caches, [5] * 900, *([6] for _ in range(30)))
    assert caches[0].window == 16 and caches[0].offset == 930 and caches[0].size() == 16
    assert caches[0].nbytes < caches[1].nbytes / 2 and not caches[0].is_trimmable()


def test_flags(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(tiny_model), "--prompt", "The sea " * 30, "--max-tokens", "6", "--json", "--temp", "0"]
    full = _json(capsys, *words)
    write_config(tmp_path / "kv_config.json", {3: preset("affine", 8), 7: preset("best", 6)})
    for flags in (["--kv-bits", "8"], ["--kv-bits", "8", "--kv-scheme", "affine"], ["--kv-config", str(tmp_path)]):
        assert _json(capsys, *words, *flags)["prompt_tokens"] == full["prompt_tokens"]
    bench = ["bench", str(tiny_model), "--prompt-lengths", "400", "--generate-lengths", "4", "--repeats", "1", "--json"]
    rows = {
        flags: _json(capsys, *bench, *flags) for flags in ((), ("--kv-bits", "3"), ("--kv-bits", "3", "--kv-scheme", "turbo"))
    }
    assert [found.get("kv") for found in rows.values()] == [None, {"cache": "best 3"}, {"cache": "turbo 3"}]
    plain, best, turbo = (found["rows"][0]["cache_bytes"] for found in rows.values())
    assert turbo < best < 0.75 * plain
    assert main([*bench[:-1], "--kv-bits", "3"]) == 0
    assert "cache    best 3\n" in capsys.readouterr().out


def _json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--events", "quiet"]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kv-bits", "7"], "--kv-bits is 7, which scheme best does not have; expected one of 2, 3, 4, 5, 6, 8"),
        (["--kv-scheme", "turbo"], "--kv-scheme turbo comes without a width; add --kv-bits with one of 1, 2, 3, 4"),
        (["--kv-config", "x", "--kv-bits", "4"], "--kv-config names the widths and schemes of layers, and --kv-bits too"),
        (["--kv-config", "nowhere.json"], "no kv config at nowhere.json"),
    ],
)
@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["bench"]])
def test_wrong_flags_are_one_line(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], command: list[str], words: list[str], message: str
) -> None:
    assert main([command[0], str(tiny_model), *command[1:], *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"optiq: error: {message}")


def test_options_of_no_flag_are_full_caches(models: dict[str, Any]) -> None:
    maker = CacheOptions().read()
    maker.check(models["llama"])
    assert not any(isinstance(cache, PackedCache) for cache in maker(models["llama"])) and maker.text == ""
