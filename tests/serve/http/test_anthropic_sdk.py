"""The official `anthropic` SDK against /v1/messages: accumulators, parsers, tool runners; whole and streamed, sync and async."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_tool
from pydantic import BaseModel

from optiq.serve.http.context import Limits
from optiq.serve.scheduler import Policy
from optiq.serve.scripted import Script, ScriptedEngine
from serve_locally import app_of, listening, tiny_served, wait_until

MODES = ["sync", "sync-stream", "async", "async-stream"]
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}
THINK = {"type": "enabled", "budget_tokens": 1024}


def client(site: Any, **options: Any) -> Anthropic:
    return Anthropic(
        base_url=site.url, api_key="none", http_client=anthropic.DefaultHttpxClient(verify=False), **{"max_retries": 0, **options}
    )


def plain() -> Any:
    """Without certificates, whose loading takes longer than most tests."""
    return anthropic.DefaultAsyncHttpxClient(verify=False)


def say(word: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"say:{word}"}]


def message(site: Any, mode: str, **asked: Any) -> Any:
    """The message; of a stream, what the SDK's accumulator made."""
    asked = {"model": "tiny", "max_tokens": 300, "thinking": THINK, **asked}

    async def go() -> Any:
        async with AsyncAnthropic(base_url=site.url, api_key="none", max_retries=0, http_client=plain()) as asynchronous:
            if mode == "async":
                return await asynchronous.messages.create(**asked)
            async with asynchronous.messages.stream(**asked) as stream:
                async for _ in stream:
                    pass
                return await stream.get_final_message()

    if mode.startswith("async"):
        return asyncio.run(go())
    with client(site) as synchronous:
        if mode == "sync":
            return synchronous.messages.create(**asked)
        with synchronous.messages.stream(**asked) as stream:
            for _ in stream:
                pass
            return stream.get_final_message()


@pytest.mark.parametrize("mode", MODES)
class TestMessages:
    def test_text_and_thinking(self, scripted, mode):
        done = message(scripted, mode, messages=say("hello"), system="Be brief.")
        thinking, text = done.content
        assert (thinking.type, thinking.thinking) == ("thinking", "Let me think about it.") and thinking.signature
        assert (text.type, text.text) == ("text", "Hello there, my friend – grüße 😀!")
        assert (done.role, done.type, done.stop_reason, done.stop_sequence) == ("assistant", "message", "end_turn", None)
        assert done.usage.input_tokens == len(scripted.gateway.requests[-1].prompt) and done.usage.output_tokens > 5
        assert done.id.startswith("msg_") and done.model == "tiny"

    def test_calls(self, scripted, mode):
        done = message(scripted, mode, messages=say("call"), tools=[WEATHER])
        assert [block.type for block in done.content] == ["thinking", "text", "tool_use"] and done.stop_reason == "tool_use"
        call = done.content[-1]
        assert (call.name, call.input) == ("get_weather", {"city": 'Oslo "north"', "days": 3}) and call.id.startswith("toolu_")

    def test_parallel_calls_and_one_alone(self, scripted, mode):
        both = message(scripted, mode, messages=say("two"), tools=[WEATHER])
        assert [block.input["city"] for block in both.content if block.type == "tool_use"] == ["Oslo", "Bonn"]
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        one = message(scripted, mode, messages=say("two"), tools=[WEATHER], tool_choice=choice)
        assert [block.input["city"] for block in one.content if block.type == "tool_use"] == ["Oslo"]
        assert one.stop_reason == "tool_use"

    def test_a_conversation_with_results(self, scripted, mode):
        first = message(scripted, mode, messages=say("call"), tools=[WEATHER])
        result = {
            "type": "tool_result",
            "tool_use_id": first.content[-1].id,
            "content": [{"type": "text", "text": "rain say:done"}],
        }
        messages = [
            *say("call"),
            {"role": "assistant", "content": [block.model_dump() for block in first.content]},
            {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
        ]
        done = message(scripted, mode, messages=messages, tools=[WEATHER])
        assert done.content[-1].text == "It rains in Oslo."
        text = scripted.prompt()
        assert "<tool_response>\nrain say:done\n</tool_response><|im_end|>\n<|im_start|>user\nAnd?<|im_end|>" in text
        assert '<parameter=city>\nOslo "north"\n</parameter>' in text

    def test_broken_calls_are_text(self, scripted, mode):
        done = message(scripted, mode, messages=say("broken"), tools=[WEATHER])
        assert done.stop_reason == "end_turn" and "<function=get_weather>" in done.content[-1].text

    def test_stops_and_lengths(self, scripted, mode):
        stopped = message(scripted, mode, messages=say("hello"), stop_sequences=["friend"])
        assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[-1].text) == (
            "stop_sequence",
            "friend",
            "Hello there, my ",
        )
        cut = message(scripted, mode, messages=say("long"), max_tokens=20)
        assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 20

    def test_no_thinking_where_none_is_asked_for(self, scripted, mode):
        for thinking in ({"type": "disabled"}, anthropic.omit):
            done = message(scripted, mode, messages=say("hello"), thinking=thinking)
            assert [block.type for block in done.content] == ["text"]

    def test_schemas(self, tiny, mode):
        schema = {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["size"]}
        done = message(
            tiny, mode, messages=say("hello"), thinking={"type": "disabled"},
            output_config={"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}},
        )  # fmt: skip
        assert 1 <= json.loads(done.content[0].text)["size"] <= 9

    def test_forced_calls(self, tiny, mode):
        for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
            level = {"type": "object", "properties": {"level": {"enum": ["low", "high"]}}, "required": ["level"]}
            tools = [{"name": "get_weather", "input_schema": level}]
            done = message(tiny, mode, messages=say("hello"), tools=tools, tool_choice=choice, thinking={"type": "disabled"})
            assert done.stop_reason == "tool_use" and done.content[0].input["level"] in ("low", "high")


def test_events_come_in_the_order_of_the_api(scripted):
    asked = {
        "model": "tiny", "max_tokens": 300, "stream": True, "messages": say("call"), "tools": [WEATHER], "thinking": THINK,
    }  # fmt: skip
    text = httpx.post(f"{scripted.url}/v1/messages?beta=true", json=asked, trust_env=False).text
    frames = [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in text.strip().split("\n\n")]
    assert all(frame["event"] == json.loads(frame["data"])["type"] for frame in frames)
    told = [json.loads(frame["data"]) for frame in frames]
    kinds = [one["type"] for one in told]
    assert kinds[:2] == ["message_start", "ping"] and kinds[-2:] == ["message_delta", "message_stop"]
    start = told[0]["message"]
    assert start["content"] == [] and start["stop_reason"] is None and start["usage"]["input_tokens"] > 0
    blocks: list[list[str]] = []
    for one in told[2:-2]:
        if one["type"] == "content_block_start":
            assert one["index"] == len(blocks)
            blocks.append([one["content_block"]["type"]])
        else:
            assert one["index"] == len(blocks) - 1
            blocks[-1].append(one["delta"]["type"] if one["type"] == "content_block_delta" else "stop")
    assert [block[0] for block in blocks] == ["thinking", "text", "tool_use"]
    assert [block[-1] for block in blocks] == ["stop"] * 3
    assert blocks[0][-2] == "signature_delta" and set(blocks[0][1:-2]) == {"thinking_delta"}
    assert set(blocks[1][1:-1]) == {"text_delta"} and set(blocks[2][1:-1]) == {"input_json_delta"} and len(blocks[2]) > 4
    assert told[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None} and told[-2]["usage"]["output_tokens"] > 0


def test_pings_come_while_nothing_else_does(tokenizer):
    from optiq.serve.scripted import Script, ScriptedEngine
    from serve_locally import app_of, listening, tiny_served

    ids = tokenizer.encode("a b c d", add_special_tokens=False)
    served = tiny_served(lambda: ScriptedEngine(tokenizer, lambda request: Script(ids, step_s=0.15)), tokenizer, max_tokens=4)
    asked = {"model": "tiny", "max_tokens": 4, "stream": True, "messages": say("hello")}
    with listening(app_of(served, Limits(ping_s=0.05))) as url:
        text = httpx.post(f"{url}/v1/messages", json=asked, trust_env=False).text
        assert text.count('event: ping\ndata: {"type":"ping"}') >= 3 and text.count("message_stop") == 2
        chat = httpx.post(f"{url}/v1/chat/completions", json=asked, trust_env=False).text
        assert chat.count(": ping\n\n") >= 3 and chat.endswith("data: [DONE]\n\n")
    served.gateway.close()


def test_counted_prompts_are_those_of_messages(scripted):
    asked = {"model": "tiny", "messages": say("hello"), "system": [{"type": "text", "text": "Be kind."}], "tools": [WEATHER]}
    counted = client(scripted).messages.count_tokens(**asked).input_tokens
    assert counted == client(scripted).messages.create(max_tokens=100, **asked).usage.input_tokens


def test_cached_tokens_are_told(tiny):
    asked = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "there was an old man " * 40}]}
    first, second = (client(tiny).messages.create(**asked).usage for _ in range(2))
    assert first.cache_read_input_tokens == 0 and second.cache_read_input_tokens >= 64
    assert first.input_tokens == second.input_tokens + second.cache_read_input_tokens
    start = next(iter(client(tiny).messages.create(stream=True, **asked))).message.usage
    assert (start.input_tokens, start.cache_read_input_tokens) == (second.input_tokens, second.cache_read_input_tokens)


class Weather(BaseModel):
    city: str
    days: int


def test_parsed_messages(scripted):
    done = client(scripted).messages.parse(model="tiny", max_tokens=99, messages=say("json"), output_format=Weather)
    assert done.parsed_output == Weather(city="Oslo", days=3)
    assert scripted.gateway.requests[-1].grammar.kind == "json_schema"


@pytest.mark.parametrize("stream", [False, True])
def test_tool_runners(scripted, stream):
    asked: list[tuple[str, int]] = []

    @beta_tool
    def get_weather(city: str, days: int) -> str:
        """The weather of a city."""
        asked.append((city, days))
        return "rain say:done"

    runner = client(scripted).beta.messages.tool_runner(
        model="tiny", max_tokens=300, messages=say("call"), tools=[get_weather], stream=stream
    )
    for step in runner:
        done = step.get_final_message() if stream else step
    assert asked == [('Oslo "north"', 3)] and done.content[-1].text == "It rains in Oslo."


AGENT: dict[str, Any] = {
    "model": "claude-sonnet-4-5-20250929",
    "max_tokens": 32000,
    "stream": True,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=ab12;"},
        {"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral"}},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "say:done"}]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "zz"}, {"type": "text", "text": "Ok."}]},
        {"role": "system", "content": "The mode changed."},
        {"role": "user", "content": [{"type": "text", "text": "say:done", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
    ],
    "tools": [
        *({"name": f"tool_{n}", "description": "x" * 2500, "input_schema": {"type": "object"}} for n in range(24)),
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
    ],
    "thinking": {"type": "adaptive", "display": "summarized"},
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "metadata": {"user_id": "user_1"},
    "betas": ["unknown-2026-01-01"],
}  # fmt: skip


def test_what_coding_agents_send(scripted):
    headers = {"anthropic-beta": "claude-code-20250219,unknown-9999", "x-api-key": "none", "anthropic-version": "2023-06-01"}
    answer = httpx.post(f"{scripted.url}/v1/messages?beta=true", json=AGENT, headers=headers, trust_env=False, timeout=30)
    assert answer.status_code == 200 and '"text":"It' in answer.text and "message_stop" in answer.text
    text = scripted.prompt()
    assert "billing" not in text and "You are a coding agent." in text and "The mode changed." in text
    assert "tool_23" in text and "web_search" not in text
    changed = json.loads(json.dumps(AGENT).replace("cch=ab12", "cch=ff00"))
    httpx.post(f"{scripted.url}/v1/messages", json=changed, headers=headers, trust_env=False, timeout=30)
    assert scripted.gateway.requests[-1].prompt == scripted.gateway.requests[-2].prompt
    assert httpx.head(scripted.url, trust_env=False).status_code == 200


def test_a_reply_that_is_begun_goes_on(scripted):
    messages = [*say("done"), {"role": "assistant", "content": "I think that"}]
    client(scripted).messages.create(model="tiny", max_tokens=50, messages=messages, thinking=THINK)
    assert scripted.prompt().endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nI think that")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0"),
        ({"extra_body": {"max_tokens": "many"}}, "max_tokens"),
        ({"system": 5}, "system"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
    ],
)
def test_wrong_fields_are_named(scripted, asked, field):
    with pytest.raises(anthropic.BadRequestError) as caught:
        client(scripted).messages.create(**{"model": "tiny", "max_tokens": 9, "messages": say("hello"), **asked})
    error = caught.value.body["error"]
    assert error["type"] == "invalid_request_error" and error["message"].startswith(f"{field}:")


def test_typed_errors(scripted, tiny, tokenizer):
    with pytest.raises(anthropic.NotFoundError):
        client(scripted).messages.create(model="nothing", max_tokens=9, messages=say("hello"))
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client(tiny).messages.create(model="tiny", max_tokens=9, messages=[{"role": "user", "content": "word " * 9000}])
    with (
        pytest.raises(anthropic.APIStatusError, match="the step broke"),
        client(scripted).messages.stream(model="tiny", max_tokens=9, messages=say("fail")) as stream,
    ):
        stream.get_final_message()
    scripted.gateway.ready = False
    try:
        with pytest.raises(anthropic.APIStatusError) as down:
            client(scripted).messages.create(model="tiny", max_tokens=9, messages=say("hello"))
        assert down.value.status_code == 503 and int(down.value.response.headers["retry-after"]) >= 1
    finally:
        scripted.gateway.ready = True


def test_a_full_line_is_an_overload(tokenizer):
    policy = Policy(max_rows=1, max_waiting=1)
    make = partial(ScriptedEngine, tokenizer, lambda request: Script([5] * 99, step_s=0.01), policy)
    served = tiny_served(make, tokenizer)
    with listening(app_of(served)) as url, ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(httpx.post, f"{url}/v1/messages", json={"messages": say("hello")}, trust_env=False) for _ in range(2)]
        wait_until(lambda: len(served.gateway.requests) == 2 and served.gateway.engine.load().decoding == 1)
        answer = httpx.post(f"{url}/v1/messages", json={"messages": say("hello")}, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["type"]) == (529, "overloaded_error") and answer.headers["retry-after"]
        answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": say("hello")}, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full") and answer.headers["retry-after"]
        assert [one.result().status_code for one in busy] == [200, 200]
    served.gateway.close()


def test_clients_that_leave_cancel(scripted):
    before = len(scripted.gateway.cancelled)
    with client(scripted).messages.create(model="tiny", max_tokens=99, messages=say("slow"), stream=True) as stream:
        next(iter(stream))
    wait_until(lambda: len(scripted.gateway.cancelled) == before + 1)


def test_models(scripted):
    (model,) = client(scripted).models.list().data
    assert (model.id, model.type, model.display_name) == ("tiny", "model", "tiny") and model.created_at.year == 2023
