"""Guesses inside the engine's batch: the replies are those of an engine without guesses, one request at a time."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path

import mlx.core as mx
import pytest

import random_models
from engine_requests import ids, mixed, replies
from optiq.generate.drafter import load_drafters
from optiq.generate.sampling import Sampling
from optiq.kv.options import CacheOptions
from optiq.models.load import load_modules
from optiq.serve.drafting import Drafts
from optiq.serve.engine import Engine, EngineOptions
from optiq.serve.grammar_spec import GrammarSpec
from optiq.serve.request import Finish, Finished, Request
from optiq.serve.scheduler import Policy

MODEL = Path(__file__).parents[2] / "examples" / "tiny-qwen3.5"


class Known:
    """Guesses from a table of replies by what was read last, wrongly now and then.

    Args:
        texts: prompts with their replies.
        miss: one guess in so many is wrong; 0 for none.
        calls: counts the calls of `draft`.
        fails: raise at this call; 0 for never.
    """

    vocabulary, token_bytes, bytes = 1 << 30, 0.0, 0

    def __init__(self, texts, miss, calls=None, fails=0):
        self._texts, self._miss, self._calls, self._fails = texts, miss, calls or itertools.count(1), fails
        self.read = []

    @property
    def ready(self):
        return bool(self.read)

    def seen(self, tokens, hidden):
        assert hidden.shape[:2] == (1, tokens.size)
        self.read += tokens.tolist()

    def held(self):
        return []

    def adopt(self, caches, length):
        raise NotImplementedError

    @staticmethod
    def draft(rows, last, count, draw):
        if next(rows[0]._calls) == rows[0]._fails:
            raise RuntimeError("no guess")
        return mx.array([row._guesses(last[place].item(), count) for place, row in enumerate(rows)])

    def _guesses(self, last, count):
        at = len(self.read) + 1
        text = next(text for text in self._texts if text[:at] == [*self.read, last])
        right = (text[at:] + [5] * count)[:count]
        return [token + (1 if self._miss and (at + n) % self._miss == 0 else 0) for n, token in enumerate(right)]


@pytest.fixture(scope="module")
def follow(loaded):
    return load_drafters(MODEL, loaded[0])


def engine(loaded, drafts=None, adapters=None, **options):
    made = Engine(*loaded, EngineOptions(**{"memory_bytes": 1 << 30, **options}), drafts)
    for name, path in (adapters or {}).items():
        made.mount(name, path)
    return made


def alone(loaded, requests, adapters=None):
    """The reply to each request, one after the other, without guesses."""
    plain, found = engine(loaded, None, adapters, prefix_bytes=0), []
    for request in requests:
        name = plain.submit(request)
        found.append(replies(plain.run())[name])
    return found


def test_a_mixed_batch_with_guesses_gives_what_each_gets_alone(loaded, follow, adapters):
    requests = [
        dataclasses.replace(request, draft=n % 9 != 4, stops=("e",) if n % 7 == 6 else ()) for n, request in enumerate(mixed(32))
    ]
    target = engine(loaded, Drafts(follow, most=3, fixed=True), adapters, policy=Policy(max_rows=4))
    names = [target.submit(request) for request in requests]
    found = replies(target.run())
    for name, request, expected in zip(names, requests, alone(loaded, requests, adapters), strict=True):
        assert found[name][:2] == expected[:2], request
        end, usage = found[name][2], found[name][2].usage
        assert (end.finish, end.stopped_by) == (expected[2].finish, expected[2].stopped_by)
        assert usage.accepted <= usage.drafted and bool(usage.drafted) <= request.draft
        assert usage.forwards + usage.accepted >= usage.tokens
    assert target.counters["accepted"] > target.counters["drafted"] / 10 > 10
    assert target.counters["accepted"] == sum(end.usage.accepted for _, _, end in found.values())


@pytest.mark.parametrize("kind", [CacheOptions(bits=4), CacheOptions(bits=4, scheme="turbo")], ids=str)
def test_packed_caches_pack_as_they_do_without_guesses(loaded, follow, kind):
    maker = kind.read()
    requests = [
        Request(ids(n, 80 + 9 * n), Sampling(temperature=n % 2, top_k=20, seed=4), max_tokens=90, caches=maker) for n in range(2)
    ]
    target = engine(loaded, Drafts(follow, most=3, fixed=True))
    names = [target.submit(request) for request in requests]
    found = replies(target.run())
    for name, (tokens, text, _) in zip(names, alone(loaded, requests), strict=True):
        assert found[name][:2] == (tokens, text)
    assert target.counters["drafted"] > 90


@pytest.mark.parametrize("kind", ["llama", "qwen3_5-tied", "qwen3_5-moe", "gemma3", "deepseek_v3"])
@pytest.mark.parametrize("kernels", [True, False])
def test_other_layers_and_caches(kind, kernels, loaded, tmp_path, monkeypatch):
    if not kernels:  # recurrent layers that cannot go half way
        monkeypatch.setattr("optiq.kernels.native.module", lambda: None)
    model, _ = load_modules(random_models.write(tmp_path, kind))
    model.set_dtype(mx.float32)
    choose = random.Random(kind)
    requests = [
        Request(tuple(choose.choices(range(128), k=length)), Sampling(temperature=n % 2, seed=n), max_tokens=9)
        for n, length in enumerate((1, 7, 20, 70))
    ]
    expected = alone((model, loaded[1]), requests)
    texts = [[*request.prompt, *tokens] for request, (tokens, _, _) in zip(requests, expected, strict=True)]
    target = engine((model, loaded[1]), Drafts(lambda: Known(texts, 3), most=3, fixed=True))
    names = [target.submit(request) for request in requests]
    found = replies(target.run())
    for name, (tokens, _, _) in zip(names, expected, strict=True):
        assert found[name][0] == tokens
    batched = kind not in ("gemma3", "deepseek_v3")  # full windows cannot be cut, latents run row by row
    assert (target.counters["accepted"] > 8) == batched


def test_a_step_that_guesses_right_is_a_step_saved(loaded):
    request = Request(ids(3, 40), max_tokens=32)
    ((tokens, _, _),) = alone(loaded, [request])
    for miss, forwards in ((0, 8), (1, 32)):
        known = Known([[*request.prompt, *tokens]], miss)
        target = engine(loaded, Drafts(lambda known=known: known, most=3, fixed=True))
        target.submit(request)
        (end,) = [event for event in target.run() if isinstance(event, Finished)]
        assert end.usage.forwards == forwards
        assert end.usage.accepted == (24 if miss == 0 else 0)


class Modelled(Drafts):
    """Steps take what a formula says, whatever else the machine does."""

    def took(self, depths, accepted, seconds):
        super().took(depths, accepted, 1 + 0.3 * max(depths))


def test_the_depth_goes_to_zero_where_guesses_are_wrong(loaded):
    requests = [Request(ids(n, 30), max_tokens=100) for n in range(2)]
    texts = [[*request.prompt, *tokens] for request, (tokens, _, _) in zip(requests, alone(loaded, requests), strict=True)]
    right, wrong = (engine(loaded, Modelled(lambda miss=miss: Known(texts, miss))) for miss in (0, 1))
    for target in (right, wrong):
        for request in requests:
            target.submit(request)
        target.run()
    assert right.counters["decode_steps"] < 60 and right.counters["accepted"] == right.counters["drafted"]
    assert wrong.counters["decode_steps"] >= 99 and wrong.counters["drafted"] < 30


def test_a_drafter_that_raises_leaves_nothing_behind(loaded):
    grammar = GrammarSpec("regex", "[a-z ]*")
    requests = [Request(ids(n, 30), max_tokens=20, grammar=grammar if n == 1 else None) for n in range(3)]
    texts = [[*request.prompt, *tokens] for request, (tokens, _, _) in zip(requests, alone(loaded, requests), strict=True)]
    calls = itertools.count(1)
    target = engine(loaded, Drafts(lambda: Known(texts, 3, calls, 5), most=3, fixed=True))
    for request in requests:
        target.submit(request)
    ends = [event for event in target.run() if isinstance(event, Finished)]
    assert [end.finish for end in ends] == [Finish.FAILED] * 3 and ends[0].error == "RuntimeError: no guess"
    assert not target.budget.promised and target.load().cache_bytes == 0 and not target._jobs
    name = target.submit(dataclasses.replace(requests[0], draft=False))
    assert replies(target.run())[name][0] == texts[0][30:]


def test_random_cancels_between_guesses_leave_nothing(loaded, follow, adapters):
    choose = random.Random(0)
    options = {"policy": Policy(max_rows=5, max_waiting=1000), "memory_bytes": 40_000_000}
    target = engine(loaded, Drafts(follow, most=2, fixed=True), adapters, **options)
    waiting, alive, ends = list(mixed(40)), [], 0
    while waiting or not target.idle:
        if waiting and choose.random() < 0.7:
            alive.append(target.submit(waiting.pop()))
        if alive and choose.random() < 0.3:
            target.cancel(alive.pop(choose.randrange(len(alive))))
        ends += sum(isinstance(event, Finished) for event in target.step())
    load = target.load()
    assert ends == 40 and target.counters["failures"] == 0 and target.counters["drafted"] > 20
    assert (load.waiting, load.reading, load.decoding, load.cache_bytes) == (0, 0, 0, 0)
    assert not target.budget.promised and not target._jobs


def test_a_prefix_comes_back_with_what_the_head_had_seen(loaded, follow):
    target = engine(loaded, Drafts(follow, most=2, fixed=True))
    prompt, usages = ids(2, 300), []
    for request in (Request(prompt, max_tokens=30), Request(prompt, max_tokens=30), Request(prompt, max_tokens=30, draft=False)):
        name = target.submit(request)
        events = target.step()
        while target._jobs[name].read < len(prompt) - 1:
            events += target.step()
        drafter = target._jobs[name].drafter
        seen = None if drafter is None else drafter.held()[0].offset
        tokens, _, end = replies(events + target.run())[name]
        usages.append((tokens, end.usage.cached_tokens, seen))
    assert [cached for _, cached, _ in usages] == [0, 256, 0]  # what holds nothing of the head is another prefix
    assert usages[0][0] == usages[1][0] == usages[2][0]
    assert [seen for _, _, seen in usages] == [298, 297, None]  # pairs of the 299 tokens; the newest waits, one is lost
