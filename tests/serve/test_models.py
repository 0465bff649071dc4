"""Architectures in the engine (attention, recurrent layers, windows, experts, latents): a batch against single rows."""

from __future__ import annotations

import random
from pathlib import Path

import mlx.core as mx
import pytest

import random_models
from optiq.generate.sampling import Sampling
from optiq.models.load import load, load_modules
from optiq.serve.engine import Engine, EngineOptions
from optiq.serve.request import Finished, Request, Token

TOKENIZER = Path(__file__).parents[2] / "examples" / "tiny-qwen3.5"
KINDS = ("llama", "qwen3_5-tied", "qwen3_5-moe", "gemma3", "phi3", "deepseek_v3")


@pytest.fixture(scope="module")
def tokenizer():
    return load(TOKENIZER)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_each_row_its_own_reply(kind, tokenizer, tmp_path):
    model, _ = load_modules(random_models.write(tmp_path, kind))
    model.set_dtype(mx.float32)
    choose = random.Random(kind)
    requests = [
        Request(tuple(choose.choices(range(128), k=length)), Sampling(temperature=n % 2, seed=n), max_tokens=6)
        for n, length in enumerate((1, 2, 40, 90, 90, 150))
    ]
    requests.append(Request((*requests[-1].prompt, 5, 6, 7), max_tokens=6))
    options = EngineOptions(memory_bytes=1 << 28)
    together = Engine(model, tokenizer, options)
    names = [together.submit(request) for request in requests]
    found = _replies(together)
    for name, request in zip(names, requests, strict=True):
        alone = Engine(model, tokenizer, options)
        own = alone.submit(request)
        assert found[name] == _replies(alone)[own], request
    again = together.submit(requests[-1])
    events = together.run()
    (end,) = [event for event in events if isinstance(event, Finished)]
    assert end.usage.cached_tokens == 128
    assert [event.id for event in events if isinstance(event, Token) and event.request == again] == found[names[-1]]


def _replies(engine):
    found = {}
    for event in engine.run():
        if isinstance(event, Token):
            found.setdefault(event.request, []).append(event.id)
        elif isinstance(event, Finished):
            assert not event.error
    return found
