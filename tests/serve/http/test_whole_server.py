"""Both SDKs against `optiq serve` as a user starts it: what only the way to the engine's process and back could lose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from serve_locally import TINY

SOURCE = Path(__file__).parents[3] / "src"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "optiq.cli.main", "serve", str(TINY), "--port", "0", "--json", "--max-tokens", "64"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as server:
        assert server.stdout is not None
        told = "".join(iter(server.stdout.readline, "}\n")) + "}"
        yield str(json.loads(told)["url"])
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def test_openai(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    question = [{"role": "user", "content": "Name a colour."}]
    level = {"type": "object", "properties": {"level": {"enum": ["low", "high"]}}, "required": ["level"]}
    tool = {"type": "function", "function": {"name": "set_level", "parameters": level}}
    done = client.chat.completions.create(
        model=TINY.name, messages=question, tools=[tool], tool_choice="required", logprobs=True, top_logprobs=2, max_tokens=200,
        extra_body={"thinking_budget": 5},
    )  # fmt: skip
    choice = done.choices[0]
    assert json.loads(choice.message.tool_calls[0].function.arguments)["level"] in ("low", "high")
    assert choice.message.reasoning_content and done.usage.completion_tokens_details.reasoning_tokens <= 6
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    text = "Once upon a time there was a king. " * 10
    told = client.completions.create(model=TINY.name, prompt=text, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs
    assert "".join(told.tokens) == text and all(value < 0 for value in told.token_logprobs[1:])
    first = client.responses.create(model=TINY.name, input=text)
    then = client.responses.create(model=TINY.name, input="And then?", previous_response_id=first.id)
    assert then.usage.input_tokens_details.cached_tokens >= 64
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=TINY.name, messages=[{"role": "user", "content": "word " * 9000}])
    assert long.value.code == "context_length_exceeded"
    odd = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.chat.completions.create(model=TINY.name, messages=question, response_format=odd)


def test_anthropic(url: str) -> None:
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    with client.messages.stream(
        model="claude-anything", max_tokens=60, messages=[{"role": "user", "content": "Name a colour."}],
        thinking={"type": "enabled", "budget_tokens": 8},
    ) as stream:  # fmt: skip
        done = stream.get_final_message()
    assert done.content[0].type == "thinking" and done.stop_reason in ("end_turn", "max_tokens") and done.model == TINY.name
