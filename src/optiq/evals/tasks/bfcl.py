"""BFCL-V3 simple: one question, one function, one right call; name and arguments are compared with the possible answers.

Protocol: 200 of the 400 questions drawn by a fixed seed, the model's own format of tool calls, 512 tokens, greedy. A call is
right where the name is, every required argument is there, none is unknown, and each value has the type of the schema and is among
the possible ones; "" among them says that the argument may be left out. Strings compare without case, spaces and ,./-_*^.
Source: Patil et al., "The Berkeley Function Calling Leaderboard", ICML 2025 (AST evaluation).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from optiq.evals.data import Data
from optiq.evals.task import Answer, Sample, Verdict, pick

FILE = "BFCL_v3_simple.json"
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "float": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "tuple": (list,),
    "dict": (dict,),
}


@dataclass(frozen=True)
class Bfcl:
    """Calls of functions.

    Args:
        count: questions; 0 for all 400.
        max_tokens: of a reply.
    """

    name: ClassVar[str] = "bfcl"
    about: ClassVar[str] = "one call of one function (BFCL-V3 simple), compared by structure"
    runs_programs: ClassVar[bool] = False
    count: int = 200
    max_tokens: int = 512

    def samples(self, data: Data) -> list[Sample]:
        """The questions, each with its function as a tool."""
        possible = {row["id"]: row["ground_truth"][0] for row in data.jsonl(f"bfcl_v3/possible_answer/{FILE}")}
        return [
            Sample(
                id=f"bfcl/{row['id']}",
                gold={"function": row["function"][0], "possible": possible[row["id"]]},
                messages=tuple(row["question"][0]),
                tools=tuple(tool(function) for function in row["function"]),
                max_tokens=self.max_tokens,
            )
            for row in pick(data.jsonl(f"bfcl_v3/{FILE}"), self.count)
        ]

    def score(self, sample: Sample, answer: Answer) -> Verdict:
        """Right if the reply has exactly one call and that is a possible one."""
        if len(answer.calls) != 1:
            return Verdict(False, {"problem": f"{len(answer.calls)} calls, expected 1"})
        call = answer.calls[0]
        ((name, possible),) = sample.gold["possible"].items()
        if call.name != called(name):
            return Verdict(False, {"problem": f"called {call.name}, expected {called(name)}"})
        try:
            given = json.loads(call.arguments)
        except json.JSONDecodeError:
            return Verdict(False, {"problem": "arguments are no JSON"})
        found = problem(given, sample.gold["function"]["parameters"], possible)
        return Verdict(found is None, {} if found is None else {"problem": found})


def called(name: str) -> str:
    """The name of a function as an API takes it: dots are not allowed there."""
    return re.sub(r"[^\w-]", "_", name)


def tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function of the data as a tool of the OpenAI API."""
    about = {"name": called(function["name"]), "description": function["description"]}
    return {"type": "function", "function": about | {"parameters": _schema(function["parameters"])}}


def problem(given: Any, schema: Mapping[str, Any], possible: Mapping[str, Sequence[Any]]) -> str | None:
    """Why arguments are not a possible answer, in words; None where they are."""
    if not isinstance(given, dict):
        return "arguments are no object"
    properties = schema["properties"]
    for name in schema.get("required", ()):
        if name not in given:
            return f"{name} is missing"
    for name, value in given.items():
        if name not in properties or name not in possible:
            return f"{name} is not a parameter"
        if not _typed(value, properties[name], possible[name]):
            return f"{name} is {value!r}, expected the type {properties[name]['type']}"
        if not _among(value, [*possible[name], *_texts(properties[name], possible[name])]):
            return f"{name} is {value!r}, expected one of {list(possible[name])!r}"
    for name, values in possible.items():
        if name not in given and "" not in values:
            return f"{name} is missing"
    return None


def _schema(value: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of the data in the words of JSON Schema; `any` says nothing."""
    found: dict[str, Any] = {key: item for key, item in value.items() if key != "type"}
    if value.get("type") not in (None, "any"):
        found["type"] = _JSON_TYPES.get(value["type"], value["type"])
    if "properties" in found:
        found["properties"] = {name: _schema(item) for name, item in found["properties"].items()}
    if isinstance(found.get("items"), dict):
        found["items"] = _schema(found["items"])
    return found


def _typed(value: Any, schema: Mapping[str, Any], possible: Sequence[Any]) -> bool:
    """Whether a value has the type of its schema, or that of a possible answer that has another (the name of a variable)."""
    wanted = _PYTHON_TYPES.get(schema["type"])
    if wanted is None:
        return True
    if isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool)):
        inner = schema.get("items", {}).get("type")
        items: list[Any] = value if isinstance(value, list) and inner in _PYTHON_TYPES else []
        return all(_typed(item, {"type": inner}, ()) for item in items)
    named = [item for item in possible if item != ""]
    return bool(named) and all(type(item) is type(value) for item in named)


def _texts(schema: Mapping[str, Any], possible: Sequence[Any]) -> list[str]:
    """Of a parameter that the schema calls a string, the possible answers that are none, as text (simple_307 has one)."""
    return [str(item) for item in possible if isinstance(item, (bool, int, float))] if schema["type"] == "string" else []


def _among(value: Any, possible: Sequence[Any]) -> bool:
    return any(_equal(value, item) for item in possible)


def _equal(value: Any, wanted: Any) -> bool:
    """Whether a value is a possible one; the values of a possible object are lists of possible ones."""
    if isinstance(value, str) and isinstance(wanted, str):
        return _plain(value) == _plain(wanted)
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(_equal(a, b) for a, b in zip(value, wanted, strict=True))
    if isinstance(value, dict) and isinstance(wanted, dict):
        known = all(name in wanted and _among(item, wanted[name]) for name, item in value.items())
        return known and all(name in value or "" in values for name, values in wanted.items())
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
