"""Several models and one engine at a time: who waits, what is loaded when, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import serving
from optiq.serve.gateway import Unavailable
from optiq.serve.http.context import Served, UnknownModel
from optiq.serve.http.shelf import Folder, Shelf
from optiq.serve.request import Refused
from optiq.serve.supervisor import Plan, Supervisor
from optiq.serve.switch import Switch, Switched
from serving import QUICK, SAY, SLOW, Words, ask, plan, reply, until


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(serving.__file__).parent), *sys.path]))


def run(test):
    """A test that is a coroutine."""
    return asyncio.run(asyncio.wait_for(test(), 60))


@asynccontextmanager
async def switched(*plans, **options):
    """A switch and the gateways of some plans; the first one is loaded."""
    switch = Switch(**options)
    gateways = [Switched(Supervisor(one, QUICK), switch) for one in plans]
    await switch.start(gateways[0].engine)
    try:
        yield switch, *gateways
    finally:
        await switch.stop()
        assert all(gateway.pid is None for gateway in gateways)


def test_one_engine_at_a_time_and_the_line_keeps_its_order():
    async def test():
        async with switched(plan(waiting=8), plan(waiting=8)) as (switch, one, two):
            ends = []

            async def asked(gateway, name, kind, count):
                found = await reply(gateway, ask(kind, count))
                assert (one.pid is None) != (two.pid is None)
                ends.append(name)
                return found

            first = asyncio.create_task(asked(one, "one", SLOW, 15))
            await asyncio.sleep(0.05)
            other = asyncio.create_task(asked(two, "two", SLOW, 5))
            await asyncio.sleep(0.05)
            late = asyncio.create_task(asked(one, "late", SAY, 1))  # its model is loaded, and yet it stands behind
            gone = asyncio.create_task(asked(two, "gone", SAY, 1))
            await asyncio.sleep(0.05)
            assert one.pid and not two.pid
            gone.cancel()
            found = await asyncio.gather(first, other, late)
            assert [len(ids) for ids, _ in found] == [15, 5, 1] and ends == ["one", "two", "late"]
            assert switch.ready and one.ready

    run(test)


@pytest.mark.slow
def test_an_idle_engine_is_ended_and_comes_back_with_its_adapters(tmp_path):
    async def test():
        async with switched(plan(), idle_s=0.3) as (switch, one):
            await one.mount("a", str(tmp_path))
            running = asyncio.create_task(reply(one, ask(SLOW, 40)))
            await asyncio.sleep(0.5)
            assert one.pid is not None
            await running
            await until(lambda: one.pid is None and switch.ready)
            with pytest.raises(Unavailable):
                await one.load()
            assert (await reply(one, ask(SAY, 1, adapter="a")))[0] == [100]

    run(test)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_told_to_all_who_wait(tmp_path):
    async def test():
        sign = tmp_path / "sign"
        sign.write_text("")
        broken = Plan({"path": str(sign)}, factory="serving:open_broken")
        async with switched(plan(), broken) as (_, one, two):
            found = await asyncio.gather(*(reply(two, ask(SAY, 1)) for _ in range(3)), return_exceptions=True)
            assert all(isinstance(error, Unavailable) and "the weights are damaged" in str(error) for error in found)
            assert len({id(error) for error in found}) == 3
            assert (await reply(one, ask(SAY, 1)))[0] == [100]
            sign.unlink()
            assert (await reply(two, ask(SAY, 1)))[0] == [100]

    run(test)


@pytest.mark.slow
def test_the_line_has_an_end():
    async def test():
        async with switched(plan(), plan(), most=2) as (_, one, two):
            running = asyncio.create_task(reply(one, ask(SLOW, 20)))
            await asyncio.sleep(0.05)
            waiting = [asyncio.create_task(reply(two, ask(SAY, 1))) for _ in range(2)]
            await asyncio.sleep(0.05)
            with pytest.raises(Refused):
                await reply(two, ask(SAY, 1))
            await asyncio.gather(running, *waiting)

    run(test)


@pytest.mark.slow
def test_stopping_ends_the_line():
    async def test():
        async with switched(plan(), plan()) as (switch, one, two):
            running = asyncio.create_task(reply(one, ask(SLOW, 10**6)))
            await asyncio.sleep(0.05)
            waiting = asyncio.create_task(reply(two, ask(SAY, 1)))
            await asyncio.sleep(0.05)
            await switch.stop()
            for task in (running, waiting):
                with pytest.raises(Unavailable):
                    await task

    run(test)


def test_models_are_found_by_name_alone(tmp_path):
    for name in ("one", "owner/two", "hidden", ".secret"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    made = []

    def make(name, place):
        made.append((name, place))
        return Served(name, 1, Switched(Supervisor(plan(), QUICK), Switch()), Words())

    async def test():
        default = make("base", tmp_path)
        shelf = Shelf(default, ["gpt"], Folder(tmp_path / "models", make, ["one", "owner/two"]))
        assert shelf.names == ("base", "one", "owner/two")
        for name, found in ((None, "base"), ("", "base"), ("gpt", "base"), ("one", "one"), ("owner/two", "owner/two")):
            assert (await shelf.open(name)).served.id == found
        assert (await shelf.open("one")).served is (await shelf.open("one")).served
        for name in ("hidden", ".secret", "..", "../models/one", "one/", "./one", str(tmp_path / "models" / "one"), "*", "a:b"):
            with pytest.raises(UnknownModel, match="known: base, one, owner/two"):
                await shelf.open(name)
        assert [name for name, _ in made] == ["base", "one", "owner/two"]
        anything = Shelf(default, ["*"])
        assert (await anything.open("claude-haiku")).served is default and (await anything.open("a:b")).adapter is None

    run(test)
