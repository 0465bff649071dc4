"""BFCL's comparison of calls: gold calls are right, every kind of wrong one is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from answers import gold_call
from optiq.evals.data import Data
from optiq.evals.task import Answer, Call
from optiq.evals.tasks.bfcl import Bfcl, problem, tool

SCHEMA: dict[str, Any] = {
    "type": "dict",
    "properties": {
        "n": {"type": "integer"},
        "x": {"type": "float"},
        "name": {"type": "string"},
        "list": {"type": "array", "items": {"type": "float"}},
        "on": {"type": "boolean"},
        "box": {"type": "dict", "properties": {"a": {"type": "integer"}}},
    },
    "required": ["n"],
}
POSSIBLE = {
    "n": [5],
    "x": [1.0, ""],
    "name": ["New York, NY", ""],
    "list": [[1.0, 2.0], ""],
    "on": [True, ""],
    "box": [{"a": [1, 2], "b": ["", 3]}, ""],
}


@pytest.mark.parametrize(
    "given",
    [
        {"n": 5},
        {"n": 5, "x": 1},
        {"n": 5, "name": "new york ny"},
        {"n": 5, "list": [1, 2.0]},
        {"n": 5, "on": True},
        {"n": 5, "box": {"a": 2}},
        {"n": 5, "box": {"a": 1, "b": 3}},
    ],
)
def test_right_arguments(given: dict[str, Any]) -> None:
    assert problem(given, SCHEMA, POSSIBLE) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "no object"),
        ({}, "n is missing"),
        ({"n": 6}, "n is 6, expected one of"),
        ({"n": 5.0}, "n is 5.0, expected the type integer"),
        ({"n": True}, "n is True, expected the type integer"),
        ({"n": "5"}, "n is '5', expected the type integer"),
        ({"n": 5, "other": 1}, "other is not a parameter"),
        ({"n": 5, "name": "Boston"}, "name is 'Boston'"),
        ({"n": 5, "list": [2.0, 1.0]}, "list is"),
        ({"n": 5, "list": [1.0]}, "list is"),
        ({"n": 5, "list": ["1", "2"]}, "list is"),
        ({"n": 5, "on": 1}, "on is 1, expected the type boolean"),
        ({"n": 5, "box": {"a": 3}}, "box is"),
        ({"n": 5, "box": {"b": 3}}, "box is"),
        ({"n": 5, "box": {"a": 1, "c": 1}}, "box is"),
    ],
)
def test_wrong_arguments(given: Any, why: str) -> None:
    assert why in str(problem(given, SCHEMA, POSSIBLE))


def test_the_name_of_a_variable_may_stand_for_a_value_where_the_answer_says_so() -> None:
    schema = {"properties": {"limits": {"type": "array", "items": {"type": "float"}}}}
    assert problem({"limits": "bounds"}, schema, {"limits": ["bounds"]}) is None
    assert problem({"limits": "bounds"}, schema, {"limits": [[1.0]]}) is not None


def test_a_possible_answer_that_is_no_string_where_the_schema_wants_one_may_be_its_text() -> None:
    schema = {"properties": {"venue": {"type": "string"}, "on": {"type": "boolean"}}}
    for venue in (True, "True", "true"):
        assert problem({"venue": venue}, schema, {"venue": ["", True], "on": [""]}) is None
    assert problem({"venue": "False"}, schema, {"venue": ["", True], "on": [""]}) is not None
    assert problem({"on": "True"}, schema, {"venue": [""], "on": [True]}) is not None


def test_all_gold_calls_are_right_and_corrupted_ones_wrong(shared: Path) -> None:
    task = Bfcl(count=0)
    samples = task.samples(Data(shared / "data" / "eval"))
    assert len(samples) == 400
    for sample in samples:
        call = gold_call(sample)
        right = task.score(sample, Answer("", (call,)))
        assert right.correct, (sample.id, right.details)
        arguments = json.loads(call.arguments)
        wrong = [(), (call, call), (Call("other", call.arguments),), (Call(call.name, "{"),)]
        wrong += [(Call(call.name, json.dumps(arguments | {"no_such_parameter": 1})),)]
        wrong += [(Call(call.name, json.dumps(arguments | {key: {"q": None}})),) for key in list(arguments)[:1]]
        assert not any(task.score(sample, Answer("", calls)).correct for calls in wrong), sample.id


def test_tools_are_json_schema(shared: Path) -> None:
    for sample in Bfcl(count=0).samples(Data(shared / "data" / "eval")):
        text = json.dumps(sample.tools)
        assert not any(f'"type": "{name}"' in text for name in ("dict", "float", "tuple", "any")), sample.id
    made = tool({"name": "a.b", "description": "d", "parameters": SCHEMA})["function"]
    assert made["name"] == "a_b" and made["parameters"]["properties"]["list"] == {"type": "array", "items": {"type": "number"}}
