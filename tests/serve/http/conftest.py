"""Servers for tests of protocols: one that says what a word of the prompt asks for, one with the embedded model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from optiq.serve.request import Request
from optiq.serve.scheduler import Policy
from optiq.serve.scripted import Script, ScriptedEngine
from serve_locally import LocalGateway, app_of, listening, tiny_engine, tiny_served, tokenizer_of

END = 4078  # <|im_end|>
CALL = "<tool_call>\n<function={}>\n{}</function>\n</tool_call>"
CITY = "<parameter=city>\n{}\n</parameter>\n<parameter=days>\n{}\n</parameter>\n"
THOUGHT = "Let me think about it.\n</think>\n\n"

# What the user's last word `say:…` makes the engine answer.
REPLIES = {
    "hello": THOUGHT + "Hello there, my friend – grüße 😀!",
    "call": THOUGHT + "I will look.\n\n" + CALL.format("get_weather", CITY.format("Oslo \"north\"", 3)),
    "two": THOUGHT + "\n".join(CALL.format("get_weather", CITY.format(*city)) for city in (("Oslo", 3), ("Bonn", 1))),
    "broken": THOUGHT + "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo",
    "json": THOUGHT + '{"city": "Oslo", "days": 3}',
    "done": THOUGHT + "It rains in Oslo.",
    "long": THOUGHT + "word " * 400,
    "fail": "",
    "slow": "one two three four five six seven eight",
}  # fmt: skip


@dataclass
class Site:
    """A server that listens.

    Args:
        url: without a path.
        gateway: what its engine was asked.
        tokenizer: of the model.
    """

    url: str
    gateway: LocalGateway
    tokenizer: Any

    def prompt(self, place: int = -1) -> str:
        """The text of a prompt that the engine was given."""
        return str(self.tokenizer.decode(list(self.gateway.requests[place].prompt)))


def script_of(tokenizer: Any) -> Callable[[Request], Script]:
    """The reply that the prompt asks for by its last `say:…`."""

    def script(request: Request) -> Script:
        text = tokenizer.decode(list(request.prompt))
        word = (re.findall(r"say:(\w+)", text) or ["hello"])[-1]
        reply = REPLIES[word] if text.endswith("<think>\n") else REPLIES[word].removeprefix(THOUGHT)
        ids = tokenizer.encode(reply, add_special_tokens=False)
        if word == "fail":
            return Script(tokenizer.encode("Half of", add_special_tokens=False), error="the step broke")
        return Script([*ids, END], step_s=0.05 if word == "slow" else 0.0)

    return script


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tokenizer_of()


@pytest.fixture(scope="module")
def scripted(tokenizer: Any) -> Iterator[Site]:
    served = tiny_served(lambda: ScriptedEngine(tokenizer, script_of(tokenizer), Policy(max_rows=8)), tokenizer, max_tokens=1000)
    with listening(app_of(served)) as url:
        yield Site(url, served.gateway, tokenizer)
    served.gateway.close()


@pytest.fixture(scope="session")
def tiny(tokenizer: Any) -> Iterator[Site]:
    served = tiny_served(tiny_engine, tokenizer)
    with listening(app_of(served)) as url:
        yield Site(url, served.gateway, tokenizer)
    served.gateway.close()
