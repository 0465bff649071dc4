"""The engine on the embedded model: batches against single replies, prefixes against cold reads, faults of one row."""

from __future__ import annotations

import json
import random
from pathlib import Path

import mlx.core as mx
import pytest

import lora_training
from engine_requests import KINDS, ids, mixed, replies
from optiq.errors import InputError
from optiq.generate.sampling import Sampling
from optiq.kv.options import CacheOptions
from optiq.lora import train
from optiq.models.chat import prompt_text
from optiq.serve.drawing import Drawn
from optiq.serve.engine import Engine, EngineOptions
from optiq.serve.grammar_spec import GrammarSpec
from optiq.serve.request import Finish, Finished, Reason, Refused, Request, Token
from optiq.serve.scheduler import GRID, Policy

MODEL = Path(__file__).parents[2] / "examples" / "tiny-qwen3.5"
MEMORY = 1 << 30


def engine(loaded, adapters=None, **options):
    made = Engine(*loaded, EngineOptions(**{"memory_bytes": MEMORY, **options}))
    for name, path in (adapters or {}).items():
        made.mount(name, path)
    return made


def test_64_mixed_requests_get_what_each_gets_alone(loaded, adapters):
    requests = list(mixed(64))
    together = engine(loaded, adapters, policy=Policy(max_rows=16))
    names = [together.submit(request) for request in requests]
    found = replies(together.run())
    alone = engine(loaded, adapters, prefix_bytes=0)
    for name, request in zip(names, requests, strict=True):
        own = alone.submit(request)
        expected = replies(alone.run())[own]
        assert found[name][:2] == expected[:2], request
        assert found[name][2].finish is expected[2].finish
    assert together.counters["decode_steps"] < sum(len(tokens) for tokens, _, _ in found.values()) / 3


def test_a_prefix_gives_the_bits_of_a_cold_read_at_every_cut(loaded, monkeypatch):
    prompt = ids(1, 1000)
    warm = engine(loaded, policy=Policy(chunk=4 * GRID), checkpoint_tokens=GRID)
    job_logits = {}

    def first_logits(target, request):
        name = target.submit(request)
        target._start_waiting()
        job = target._jobs[name]
        seen = []
        monkeypatch.setattr("optiq.serve.engine.draw", lambda jobs, logits, draft: seen.append(logits[0, 0]) or [Drawn([5], 0)])
        while name in target._jobs:
            target.step()
        return seen[0], job.usage.cached_tokens

    first_logits(warm, Request(prompt, max_tokens=1))
    for length in (*range(GRID + 1, 1000, 97), 65, 64, 66, 129, 1000):
        request = Request(prompt[:length], max_tokens=1)
        cold = engine(loaded, policy=Policy(chunk=8 * GRID), prefix_bytes=0)
        expected, none = first_logits(cold, request)
        logits, cached = first_logits(warm, request)
        assert none == 0 and cached == (length - 1) // GRID * GRID
        assert mx.array_equal(logits, expected), length
        job_logits[length] = expected
    warm.prefix.shrink(warm.prefix.bytes // 2)
    for length, expected in job_logits.items():
        assert mx.array_equal(first_logits(warm, Request(prompt[:length], max_tokens=1))[0], expected), length


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_cache_comes_back_from_a_prefix(loaded, kind):
    maker, prompt = kind.read(), ids(2, 400)
    target = engine(loaded)
    results = []
    for _ in range(2):
        name = target.submit(Request(prompt, Sampling(temperature=1.0, seed=3), max_tokens=80, caches=maker))
        results.append(replies(target.run())[name])
    assert results[0][0] == results[1][0]
    assert [end.usage.cached_tokens for _, _, end in results] == [0, 384]


def test_turn_two_reads_its_new_tokens_and_at_most_a_chunk_of_the_grid(loaded):
    target = engine(loaded)
    first, more = ids(3, 777), ids(4, 150)
    target.submit(Request(first, max_tokens=2))
    target.run()
    target.submit(Request((*first, *more), max_tokens=2))
    (end,) = [event for event in target.run() if isinstance(event, Finished)]
    assert end.usage.prompt_tokens - end.usage.cached_tokens <= len(more) + GRID


def test_a_cancelled_row_leaves_and_its_neighbours_go_on(loaded):
    target = engine(loaded)
    stay = target.submit(Request(ids(5, 100), max_tokens=20))
    alone = replies(engine_run(loaded, Request(ids(5, 100), max_tokens=20)))["request-1"]
    leave = [target.submit(Request(ids(n, 300), max_tokens=50)) for n in (6, 7, 8)]
    events = []
    for step in range(12):
        events += target.step()
        if step in (1, 4, 9):
            target.cancel(leave.pop())
    events += target.run()
    assert replies(events)[stay][:2] == alone[:2]
    assert [e.finish for e in events if isinstance(e, Finished)].count(Finish.CANCELLED) == 3
    assert not target.budget.promised and target.load().cache_bytes == 0


def engine_run(loaded, request):
    target = engine(loaded)
    target.submit(request)
    return target.run()


def test_a_row_that_raises_ends_alone(loaded, monkeypatch):
    target = engine(loaded)
    bad = target.submit(Request(ids(9, 20), max_tokens=30, grammar=GrammarSpec("regex", "[a-z]{30}")))
    good = [target.submit(Request(ids(n, 20), max_tokens=30)) for n in (10, 11)]
    events = []
    while len(target._batch.names) < 3:
        events += target.step()

    def broken():
        raise InputError("too complex")

    monkeypatch.setattr(target._jobs[bad].grammar, "mask", broken)
    found = replies(events + target.run())
    assert found[bad][2].finish is Finish.REFUSED and found[bad][2].error == "too complex"
    assert all(found[name][2].finish is Finish.LENGTH and len(found[name][0]) == 30 for name in good)
    assert not target.budget.promised and target.load().cache_bytes == 0


def test_a_bias_for_a_token_that_there_is_not_is_refused_at_once(loaded):
    target = engine(loaded)
    with pytest.raises(InputError, match="logit bias for token 1000000000, expected an id from 0 to "):
        target.submit(Request(ids(9, 20), Sampling(logit_bias={10**9: 1.0}), max_tokens=5))
    assert target.idle


def test_refusals_carry_their_reason(loaded):
    target = engine(loaded, context=100, memory_bytes=60_000_000, policy=Policy(max_waiting=1))
    with pytest.raises(Refused, match="100 tokens, expected fewer than the context of 100") as caught:
        target.submit(Request(ids(1, 100)))
    assert caught.value.reason is Reason.CONTEXT
    target.submit(Request(ids(1, 99), max_tokens=9))
    with pytest.raises(Refused) as caught:
        target.submit(Request(ids(1, 99), max_tokens=9))
    assert caught.value.reason is Reason.QUEUE
    (end,) = [event for event in target.run() if isinstance(event, Finished)]
    assert end.usage.tokens == 1 and end.finish is Finish.LENGTH
    small = engine(loaded, memory_bytes=2_000_000)
    with pytest.raises(Refused, match="GB of caches for") as caught:
        small.submit(Request(ids(1, 99), max_tokens=100_000))
    assert caught.value.reason is Reason.MEMORY


def test_little_memory_evicts_prefixes_then_waits(loaded):
    probe = engine(loaded)
    need = probe.footprint(CacheOptions().read()).of(256)
    target = engine(loaded, memory_bytes=3 * need, prefix_bytes=2 * need)
    names = [target.submit(Request(ids(n, 200), max_tokens=8)) for n in range(6)]
    most = 0
    events = []
    while not target.idle:
        events += target.step()
        load = target.load()
        most = max(most, load.reading + load.decoding)
        assert load.cache_bytes + load.prefix_bytes <= 3 * need
    found = replies(events)
    assert 1 <= most <= 3
    assert all(found[name][2].finish is Finish.LENGTH for name in names)
    assert target.prefix.counters.evictions > 0


def test_rows_decode_while_a_long_prompt_is_read(loaded):
    target = engine(loaded, policy=Policy(gap=1.5))
    target.submit(Request(ids(1, 10), max_tokens=200))
    target.step()
    target.step()
    long = target.submit(Request(ids(2, 3000), max_tokens=1))
    between = 0
    while long in target._jobs:
        between += sum(isinstance(event, Token) for event in target.step())
    assert between > 12  # six chunks alone would leave one token each


def test_stop_strings_are_never_told(loaded):
    request = Request(ids(12, 50), max_tokens=60)
    (whole,) = [text for _, text, _ in replies(engine_run(loaded, request)).values()]
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    assert stop
    (found,) = replies(engine_run(loaded, Request(request.prompt, max_tokens=60, stops=(stop,)))).values()
    assert found[1] == whole[: whole.index(stop)]
    assert found[2].finish is Finish.STOP and found[2].stopped_by == stop


def test_a_grammar_holds_and_ends_the_reply(loaded):
    tokenizer = loaded[1]
    target = engine(loaded)
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    sampling = Sampling(temperature=1.0, seed=5)
    after = tuple(tokenizer.encode("</think>", add_special_tokens=False))
    names = [
        target.submit(Request(ids(1, 30), sampling, max_tokens=600, grammar=GrammarSpec.json_schema(schema))),
        target.submit(Request(ids(2, 30), sampling, max_tokens=9, grammar=GrammarSpec.choice(["left", "right"]))),
        target.submit(Request(ids(3, 30), sampling, max_tokens=9, grammar=GrammarSpec.choice(["left"]), after=after)),
    ]
    found = replies(target.run())
    assert set(json.loads(found[names[0]][1])) == {"ok"}
    assert found[names[1]][1] in ("left", "right") and found[names[1]][2].finish is Finish.STOP
    assert found[names[2]][1] != "left"
    with pytest.raises(InputError, match="regex"):
        target.submit(Request(ids(1, 3), grammar=GrammarSpec("regex", "(")))
    assert target.idle


def test_two_trained_adapters_answer_differently_in_one_batch(loaded, tmp_path):
    question, trained = "What do you see?", {}
    for word in ("red", "blue"):
        data = lora_training.write(tmp_path / word / "train.jsonl", [lora_training.chat(f"A {word} stone.", question)] * 2)
        asked = {"iters": 12, "lr": 1e-2, "num_layers": 4, "rank": 4, "packing": False, "save_every": 100}
        trained[word] = train.run(lora_training.settings(data, tmp_path / f"{word}-adapter", **asked)).path
    text = prompt_text(loaded[1], [{"role": "user", "content": question}], thinking=False)
    prompt = tuple(loaded[1].encode(text))
    target = engine(loaded, trained)
    names = {
        word: target.submit(Request(prompt, Sampling(temperature=0.0), max_tokens=8, adapter=word)) for word in (None, *trained)
    }
    found = replies(target.run())
    for word in trained:
        assert found[names[word]][1].startswith(f"A {word} stone.<|im_end|>")
    assert "stone" not in found[names[None]][1]


def test_adapters_do_not_share_prefixes_and_are_not_taken_away_in_use(loaded, adapters):
    target, prompt = engine(loaded, adapters), ids(5, 200)
    cached = []
    for adapter in (None, "peft", "mlx", "peft"):
        target.submit(Request(prompt, max_tokens=2, adapter=adapter))
        if adapter is not None:
            with pytest.raises(InputError, match="is in use by request"):
                target.unmount(adapter)
        cached += [event.usage.cached_tokens for event in target.run() if isinstance(event, Finished)]
    assert cached == [0, 0, 0, 192]
    target.unmount("peft")
    with pytest.raises(InputError, match="no adapter 'peft' is mounted; mounted: mlx"):
        target.submit(Request(prompt, adapter="peft"))


def test_log_probabilities_are_those_of_the_model(loaded):
    target, prompt = engine(loaded), ids(6, 40)
    target.submit(Request(prompt, max_tokens=3, logprobs=2))
    told = [event for event in target.run() if isinstance(event, Token)]
    logits = loaded[0](mx.array([[*prompt, *(token.id for token in told)]]))[0]
    for place, token in enumerate(told):
        exact = logits[len(prompt) - 1 + place]
        exact = exact - mx.logsumexp(exact)
        assert token.logprob == pytest.approx(exact[token.id].item(), abs=1e-4)
        assert [one.token for one in token.top] == mx.argsort(-exact)[:2].tolist()


def test_random_requests_with_random_cancels_leave_nothing(loaded, adapters):
    choose = random.Random(0)
    target = engine(loaded, adapters, policy=Policy(max_rows=5, max_waiting=1000), memory_bytes=40_000_000)
    waiting = [request for _ in range(2) for request in mixed(50)]
    alive, ends = [], 0
    while waiting or not target.idle:
        if waiting and choose.random() < 0.7:
            alive.append(target.submit(waiting.pop()))
        if alive and choose.random() < 0.3:
            target.cancel(alive.pop(choose.randrange(len(alive))))
        ends += sum(isinstance(event, Finished) for event in target.step())
    load = target.load()
    assert ends == 100
    assert (load.waiting, load.reading, load.decoding, load.cache_bytes) == (0, 0, 0, 0)
    assert not target.budget.promised and not target._jobs and load.prefix_bytes <= target.prefix.limit_bytes
