"""The scripted engine keeps the interface of the real one."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from optiq.models.load import load
from optiq.serve.engine import Engine
from optiq.serve.request import Finish, Finished, Request, Serving, Token
from optiq.serve.scheduler import Policy
from optiq.serve.scripted import Script, ScriptedEngine

MODEL = Path(__file__).parents[2] / "examples" / "tiny-qwen3.5"


@pytest.fixture(scope="module")
def tokenizer():
    return load(MODEL)[1]


def test_both_engines_have_the_interface():
    for name, member in vars(Serving).items():
        if not name.startswith("_") and callable(member):
            for engine in (Engine, ScriptedEngine):
                assert inspect.signature(getattr(engine, name)) == inspect.signature(member), (engine, name)


def test_it_says_the_script_and_stops_as_the_engine_does(tokenizer):
    ids = tokenizer.encode("Hello world, this is a script.", add_special_tokens=False)
    engine = ScriptedEngine(tokenizer, lambda request: Script(ids), Policy(max_rows=1))
    first = engine.submit(Request((1, 2), max_tokens=len(ids)))
    second = engine.submit(Request((1,), max_tokens=99, stops=("world",)))
    events = []
    while not engine.idle:
        events += engine.step()
    texts = {name: "".join(getattr(e, "text", "") for e in events if e.request == name) for name in (first, second)}
    assert texts == {first: "Hello world, this is a script.", second: "Hello "}
    ends = {e.request: e for e in events if isinstance(e, Finished)}
    assert ends[first].finish is Finish.LENGTH and ends[second].stopped_by == "world"


def test_faults_can_be_scripted(tokenizer):
    engine = ScriptedEngine(tokenizer, lambda request: Script([5], error="boom"))
    engine.submit(Request((1,)))
    events = engine.step() + engine.step()
    assert [type(e) for e in events[1:]] == [Token, Finished] and events[-1].error == "boom"
    engine = ScriptedEngine(tokenizer, lambda request: Script([5], crash=RuntimeError("broken")))
    engine.submit(Request((1,)))
    engine.step()
    with pytest.raises(RuntimeError, match="broken"):
        engine.step()
