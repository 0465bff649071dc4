"""The OpenAPI document is true: whatever it allows, and whatever it forbids, is answered as it says, and nothing is ever a 500.

What cannot be met is refused with a status below 500; an engine that fails at a request is not part of these tests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from optiq.models.load import load
from optiq.serve.engine import Engine, EngineOptions
from optiq.serve.http import anthropic, openai, openapi
from optiq.serve.http.context import Context, Limits
from optiq.serve.http.shelf import Shelf
from optiq.serve.scripted import Script, ScriptedEngine
from serve_locally import TINY, app_of, listening, tiny_served

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SHORT_S, LONG_S = 5.0, 600.0
SCHEMA = schemathesis.openapi.from_dict(openapi.document())
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]


@pytest.fixture(scope="module")
def scripted(tokenizer: Any) -> Iterator[str]:
    ids = tokenizer.encode("Hm.\n</think>\n\nYes, {", add_special_tokens=False)
    served = tiny_served(lambda: ScriptedEngine(tokenizer, lambda request: Script([*ids, 4078])), tokenizer)
    with listening(app_of(served)) as url:
        yield url
    served.gateway.close()


@pytest.fixture(scope="module")
def small(tokenizer: Any) -> Iterator[str]:
    """The embedded model with room for short replies alone."""
    options = EngineOptions(context=500, memory_bytes=1 << 29)
    served = tiny_served(lambda: Engine(*load(TINY), options), tokenizer, max_tokens=8)
    with listening(app_of(served)) as url:
        yield url
    served.gateway.close()


def try_everything(url: str, seconds: float, first_seed: int = 0, examples: int = 3) -> int:
    """Cases for every operation, valid ones and others, until the time is over; how many there were."""
    count, round_, end = 0, first_seed, time.monotonic() + seconds
    while time.monotonic() < end:
        for operation in OPERATIONS:
            modes = [GenerationMode.POSITIVE] + [GenerationMode.NEGATIVE] * bool(list(operation.body))
            count += sum(_cases(operation, mode, url, round_, examples) for mode in modes if time.monotonic() < end)
        round_ += 1
    return count


def _cases(operation: Any, mode: Any, url: str, round_: int, examples: int) -> int:
    count = 0

    @seed(round_)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        nonlocal count
        count += 1
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=60)

    run()
    return count


def test_a_short_time_of_everything(scripted: str) -> None:
    assert try_everything(scripted, SHORT_S) > 20


@pytest.mark.slow
def test_a_long_time_of_everything(small: str, scripted: str) -> None:
    assert try_everything(small, LONG_S / 2, 1000, 25) + try_everything(scripted, LONG_S / 2, 2000, 25) > 2000


def test_every_route_is_in_the_document(tokenizer: Any) -> None:
    served = tiny_served(lambda: ScriptedEngine(tokenizer, lambda request: Script([5])), tokenizer)
    context = Context(Shelf(served), Limits())
    routes = [route for surface in (openai.SURFACE, anthropic.SURFACE) for route in surface.routes(context)]
    found = {
        (method, route.path.replace(":path", ""))
        for route in routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    told = {(one.method, one.path) for one in openapi.OPERATIONS}
    assert {one for one in found if one[0] != "HEAD"} == told | {("GET", "/openapi.json")}
    served.gateway.close()


RAW = [
    (b"", 400), (b"[]", 400), (b"{", 400), (b'"x"', 400), (b"\xff\xfe", 400), (b'{"messages": NaN}', 400),
    (b"[" * 100_000, 400), (b'{"messages":' * 5000, 400), (b'{"seed":' + b"9" * 5000 + b"}", 400),
    (b'{"messages": [{"role": "user", "content": "\\ud800 \\u0000 x"}]}', 200),
    (b'{"prompt": "\\ud83d", "max_tokens": 1}', 200), (b'{"input": "\\udfff"}', 200),
    (b'{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"messages": 5, "tools": 5, "loop": 1}}', 200),
    (b'{"messages": [{"role": "user", "content": "x"}], "model": 1e3, "input": 5}', 400),
]  # fmt: skip
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens")


@pytest.mark.parametrize(("raw", "status"), RAW, ids=range(len(RAW)))
def test_no_bytes_are_a_failure(scripted: str, raw: bytes, status: int) -> None:
    answers = [httpx.post(scripted + path, content=raw, trust_env=False, timeout=30) for path in PATHS]
    assert all(answer.status_code in (200, 400) for answer in answers)
    assert all(answer.json()["error"]["message"] for answer in answers if answer.status_code == 400)
    assert (status == 200) == any(answer.status_code == 200 for answer in answers)


def test_the_document_is_served(scripted: str) -> None:
    assert httpx.get(f"{scripted}/openapi.json", trust_env=False).json() == openapi.document()
