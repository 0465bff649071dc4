"""The engine in a process of its own: every way to lose it, and that it comes back. Scripted, without a model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import pytest

import serving
from optiq.errors import InputError, ModelError
from optiq.serve.gateway import Unavailable
from optiq.serve.request import Finish, Reason, Refused, Token
from optiq.serve.supervisor import Patience, Plan, Supervisor
from serving import ABORT, EXIT, FAIL, GARBLE, HANG, QUICK, RAISE, REFUSE, SAY, SLOW, STALL, ask, plan, reply, supervised, until


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(serving.__file__).parent), *sys.path]))


def run(test):
    """A test that is a coroutine."""
    return asyncio.run(asyncio.wait_for(test(), 60))


def test_replies_come_from_the_child_and_do_not_mix():
    async def test():
        async with supervised(plan(waiting=8)) as engine:
            assert engine.ready and engine.pid != os.getpid()
            found = await asyncio.gather(*(reply(engine, ask(SAY, 6, n)) for n in range(8)))
            for n, (ids, end) in enumerate(found):
                assert ids == [n, 100, 101, 102, 103, 104] and end.finish is Finish.LENGTH and end.usage.tokens == 6
            assert engine.running == 0
            load = await engine.load()
            assert (load.waiting, load.decoding) == (0, 0)

    run(test)


@pytest.mark.parametrize("kind", [RAISE, HANG, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (ABORT, EXIT, GARBLE))])
def test_a_lost_engine_ends_what_runs_and_comes_back(kind):
    async def test():
        async with supervised() as engine:
            first = engine.pid
            slow = asyncio.create_task(reply(engine, ask(SLOW, 500)))
            await until(lambda: engine.running == 1)
            with pytest.raises(Unavailable, match="try again") as told:
                await reply(engine, ask(kind, 2))
            assert told.value.retry_after_s >= 1
            with pytest.raises(Unavailable):
                await slow
            assert not engine.ready
            with pytest.raises(Unavailable, match="the engine"):
                await reply(engine, ask(SAY, 1))
            await until(lambda: engine.ready, 10)
            assert engine.pid != first and engine.restarts == 1
            assert (await reply(engine, ask(SAY, 2)))[0] == [100, 101]

    run(test)


@pytest.mark.slow
def test_kills_from_outside_are_survived_and_pauses_grow():
    async def test():
        async with supervised() as engine:
            for n in range(3):
                os.kill(engine.pid, signal.SIGKILL)
                await until(lambda n=n: engine.restarts == n + 1 and engine.ready, 10)
            assert (await reply(engine, ask(SAY, 1)))[0] == [100]

    run(test)


@pytest.mark.slow
def test_a_stopped_child_is_not_ready_then_killed():
    async def test():
        async with supervised() as engine:
            first = engine.pid
            os.kill(first, signal.SIGSTOP)
            quiet = await until(lambda: not engine.ready)
            assert quiet < QUICK.hang_s + 1 and engine.pid == first
            await until(lambda: engine.ready and engine.pid != first, 10)

    run(test)


@pytest.mark.slow
def test_a_long_step_is_no_hang_and_flips_ready():
    async def test():
        async with supervised() as engine:
            task = asyncio.create_task(reply(engine, ask(STALL, 1)))
            await until(lambda: not engine.ready)
            ids, end = await task
            assert end.finish is Finish.LENGTH and len(ids) == 2 and engine.restarts == 0
            await until(lambda: engine.ready)

    run(test)


@pytest.mark.slow
def test_limits_grow_with_loading():
    async def test():
        patience = Patience(**{**vars(QUICK), "growth": 10.0, "hang_s": 0.1, "stall_s": 0.1})
        async with supervised(plan(load_s=0.2), patience) as engine:
            assert engine.load_s > 0.2
            ids, _ = await reply(engine, ask(STALL, 1))
            assert len(ids) == 2 and engine.restarts == 0

    run(test)


def test_what_fails_in_one_request_is_its_own():
    async def test():
        async with supervised() as engine:
            other = asyncio.create_task(reply(engine, ask(SLOW, 20)))
            ids, end = await reply(engine, ask(FAIL, 2))
            assert len(ids) == 2 and end.finish is Finish.FAILED and end.error == "the parser broke"
            _, end = await reply(engine, ask(REFUSE, 2))
            assert end.finish is Finish.FAILED and "a bug in taking in" in end.error
            with pytest.raises(InputError, match="no adapter 'x'"):
                await reply(engine, ask(SAY, 1, adapter="x"))
            assert len((await other)[0]) == 20 and engine.restarts == 0

    run(test)


def test_closing_the_iterator_cancels_in_any_state():
    async def test():
        async with supervised(plan(rows=1, waiting=4)) as engine:
            async with aclosing(engine.run(ask(SLOW, 10**6))) as running:
                assert await anext(running)
                waiting = engine.run(ask(SAY, 3))
                task = asyncio.create_task(anext(waiting))
                while (await engine.load()).waiting != 1:
                    await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.wait([task])
                assert (await engine.load()).waiting == 0 and engine.running == 1
            assert (await engine.load()).decoding == 0 and engine.running == 0
            assert (await reply(engine, ask(SAY, 3)))[0] == [100, 101, 102]

    run(test)


@pytest.mark.slow
def test_too_many_are_refused_by_both_sides():
    async def test():
        chosen = plan(rows=1, waiting=3)
        async with supervised(Plan(chosen.arguments, most=3, factory=chosen.factory)) as engine:
            tasks = [asyncio.create_task(reply(engine, ask(SLOW, 10))) for _ in range(3)]
            await until(lambda: engine.running == 3)
            with pytest.raises(Refused) as told:
                await reply(engine, ask(SAY, 1))
            assert told.value.reason is Reason.QUEUE
            await asyncio.gather(*tasks)
        chosen = plan(rows=1, waiting=1)
        async with supervised(Plan(chosen.arguments, most=99, factory=chosen.factory)) as engine:
            found = await asyncio.gather(*(reply(engine, ask(SLOW, 5)) for _ in range(6)), return_exceptions=True)
            refused = [one for one in found if isinstance(one, Refused)]
            assert refused and all(one.reason is Reason.QUEUE for one in refused)

    run(test)


def test_adapters_come_back_with_the_engine(tmp_path):
    async def test():
        async with supervised() as engine:
            await engine.mount("a", str(tmp_path))
            await engine.mount("b", str(tmp_path))
            with pytest.raises(InputError, match="mounted already"):
                await engine.mount("a", str(tmp_path))
            await engine.unmount("b")
            with pytest.raises(InputError, match="no adapter 'b'"):
                await engine.unmount("b")
            os.kill(engine.pid, signal.SIGKILL)
            await until(lambda: engine.restarts == 1 and engine.ready)
            assert engine.adapters == ("a",)
            assert (await reply(engine, ask(SAY, 1, adapter="a")))[0] == [100]

    run(test)


def test_an_engine_that_cannot_be_opened_is_said_at_the_start(tmp_path):
    async def test():
        sign = tmp_path / "sign"
        for text, message in (("", "the weights are damaged"), ("bug", "ended while it was loading")):
            sign.write_text(text)
            with pytest.raises(ModelError, match=message):
                await Supervisor(Plan({"path": str(sign)}, factory="serving:open_broken"), QUICK).start()

    run(test)


@pytest.mark.slow
def test_an_engine_that_cannot_come_back_is_tried_until_it_can(tmp_path):
    async def test():
        sign = tmp_path / "sign"
        async with supervised(Plan({"path": str(sign)}, factory="serving:open_broken")) as engine:
            sign.write_text("")
            os.kill(engine.pid, signal.SIGKILL)
            await until(lambda: not engine.ready)
            await asyncio.sleep(0.8)
            with pytest.raises(Unavailable, match="cannot be started: the weights are damaged|killed by SIGKILL"):
                await reply(engine, ask(SAY, 1))
            sign.unlink()
            await until(lambda: engine.ready, 10)

    run(test)


def test_stopping_ends_child_and_requests():
    async def test():
        async with supervised() as engine:
            child = engine.pid
            task = asyncio.create_task(reply(engine, ask(SLOW, 10**6)))
            await until(lambda: engine.running == 1)
            await engine.stop()
            with pytest.raises(Unavailable):
                await task
            with pytest.raises(ProcessLookupError):
                os.kill(child, 0)

    run(test)


@pytest.mark.parametrize("kind", ["hang", pytest.param("idle", marks=pytest.mark.slow)])
def test_the_child_dies_with_its_parent(kind):
    code = (
        "import asyncio, os, sys, serving\n"
        "async def main():\n"
        "    engine = serving.Supervisor(serving.plan(), serving.QUICK); await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        f"    if {kind!r} == 'hang':\n"
        "        asyncio.create_task(serving.reply(engine, serving.ask(serving.HANG, 1)))\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    deadline = time.monotonic() + 10
    while _lives(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)


def _lives(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_events_keep_their_form_on_the_way():
    from optiq.generate.sampling import Sampling
    from optiq.kv.options import CacheOptions, Maker
    from optiq.serve import messages
    from optiq.serve.grammar_spec import GrammarSpec
    from optiq.serve.request import Finished, Load, Logprob, Progress, Request, Scored, Usage

    events = [
        Token("r1", 5, "é\ud800"),
        Token("r1", 5, "", -0.5, (Logprob(5, -0.5), Logprob(6, -1.25))),
        Token("r1", 5, "x", float("-inf")),
        Progress("r1", 3, 9),
        Progress("r1", 3, 9, 2, (Scored(7, -0.5), Scored(8, -0.25, (Logprob(5, -0.5),)))),
        Finished("r1", Finish.STOP, Usage(3, 1, 2, 4, 5, 6, 0.5, 0.25, 0.125), "end", 7, ""),
        Finished("r1", Finish.FAILED, Usage(), error="broken"),
    ]
    for event in events:
        frame = messages.pack(["events", [messages.from_event(event)]])
        assert messages.length_of(frame[:4]) == len(frame) - 4
        assert messages.to_event(messages.unpack(frame[4:])[1][0]) == event
    file = Maker("my.json")
    requests = [
        Request((1, 2, 3)),
        Request(
            (1,), Sampling(0.5, logit_bias={3: -1.0}, seed=1 << 62), 7, frozenset({1, 2}), ("a", "é"), (1,),
            CacheOptions(bits=4).read(), "ad", GrammarSpec.choice(["x"]), (9,), 8, 6, 5, 4, "hash", False,
        ),
        Request((1,), caches=file),
    ]  # fmt: skip
    for request in requests:
        sent = messages.unpack(messages.pack(["submit", "r1", messages.from_request(request)])[4:])[2]
        assert messages.to_request(sent, {"my.json": file}) == request
    with pytest.raises(InputError, match=r"my\.json.*not known"):
        messages.to_request(messages.from_request(requests[-1]), {})
    load = Load(1, 2, 3, 4, 5, 6, {"a": 1.5})
    assert messages.to_load(messages.unpack(messages.pack(["x", messages.from_load(load)])[4:])[1]) == load
