"""The official `openai` SDK against /v1/responses: its accumulator and parsers, and what Codex-style clients send."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from openai_clients import client, plain
from optiq.serve.http.responses_store import Kept, Store

MODES = ["sync", "sync-stream", "async", "async-stream"]
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}


def respond(site: Any, mode: str, **asked: Any) -> Any:
    """The response; of a stream, what the SDK's accumulator made."""
    asked = {"model": "tiny", **asked}

    async def go() -> Any:
        async with AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0, http_client=plain()) as asynchronous:
            if mode == "async":
                return await asynchronous.responses.parse(**asked)
            async with asynchronous.responses.stream(**asked) as stream:
                async for _ in stream:
                    pass
                return await stream.get_final_response()

    if mode.startswith("async"):
        return asyncio.run(go())
    with client(site) as synchronous:
        if mode == "sync":
            return synchronous.responses.parse(**asked)
        with synchronous.responses.stream(**asked) as stream:
            for _ in stream:
                pass
            return stream.get_final_response()


class Weather(BaseModel):
    city: str
    days: int


@pytest.mark.parametrize("mode", MODES)
class TestResponses:
    def test_text_and_reasoning(self, scripted, mode):
        done = respond(scripted, mode, input="say:hello", instructions="Be brief.", metadata={"a": "b"})
        assert done.output_text == "Hello there, my friend – grüße 😀!"
        reasoning, message = done.output
        assert reasoning.content[0].text == "Let me think about it." and reasoning.encrypted_content
        assert (message.role, message.status, done.status, done.metadata) == ("assistant", "completed", "completed", {"a": "b"})
        assert done.usage.input_tokens == len(scripted.gateway.requests[-1].prompt)
        assert 0 < done.usage.output_tokens_details.reasoning_tokens < done.usage.output_tokens
        assert scripted.prompt().startswith("<|im_start|>system\nBe brief.<|im_end|>")

    def test_calls_and_what_follows(self, scripted, mode):
        first = respond(scripted, mode, input="say:call", tools=[WEATHER])
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
        call = first.output[-1]
        assert json.loads(call.arguments) == {"city": 'Oslo "north"', "days": 3} and call.name == "get_weather"
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain say:done"}
        told = scripted.tokenizer.decode(list(scripted.gateway.requests[-1].prompt))
        done = respond(scripted, mode, input=[result], previous_response_id=first.id, tools=[WEATHER])
        assert done.output_text == "It rains in Oslo." and done.previous_response_id == first.id
        assert scripted.prompt().startswith(told)  # so its prefix is known

    def test_clients_that_keep_everything_themselves(self, scripted, mode):
        asked = {"tools": [WEATHER], "store": False, "include": ["reasoning.encrypted_content"]}
        first = respond(scripted, mode, input="say:call", **asked)
        with pytest.raises(openai.NotFoundError):
            client(scripted).responses.retrieve(first.id)
        items = [item.model_dump(exclude_none=True, exclude={"status", "parsed_arguments"}) for item in first.output]
        del items[0]["content"]  # what is sealed is enough
        result = {"type": "function_call_output", "call_id": items[-1]["call_id"], "output": "rain say:done"}
        told = scripted.prompt()
        done = respond(scripted, mode, input=[{"role": "user", "content": "say:call"}, *items, result], **asked)
        assert done.output_text == "It rains in Oslo."
        assert scripted.prompt().startswith(told + "Let me think about it.\n</think>\n\nI will look.")

    def test_parsed_texts(self, scripted, mode):
        done = respond(scripted, mode, input="say:json", text_format=Weather)
        assert done.output_parsed == Weather(city="Oslo", days=3)

    def test_log_probabilities(self, tiny, mode):
        include = ["message.output_text.logprobs"]
        schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
        text = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
        asked = {"include": include, "reasoning": {"effort": "none"}, "text": text, "max_output_tokens": 500}
        done = respond(tiny, mode, input="a", top_logprobs=2, **asked)
        told = done.output[0].content[0].logprobs
        assert "".join(token.token for token in told) == done.output_text and all(len(one.top_logprobs) == 2 for one in told)


def test_events_come_in_the_order_of_the_api(scripted):
    asked = {"model": "tiny", "input": "say:call", "tools": [WEATHER], "stream": True}
    text = httpx.post(f"{scripted.url}/v1/responses", json=asked, trust_env=False).text
    frames = [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in text.strip().split("\n\n")]
    told = [json.loads(frame["data"]) for frame in frames]
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    assert all(frame["event"] == one["type"] for frame, one in zip(frames, told, strict=True))
    kinds = [one["type"].removeprefix("response.") for one in told]
    distinct = [kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before]
    assert distinct == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [one["output_index"] for one in told if one["type"] == "response.output_item.added"] == [0, 1, 2]
    assert told[-1]["response"]["output"] == [one["item"] for one in told if one["type"] == "response.output_item.done"]
    assert told[0]["response"]["status"] == "in_progress" and told[0]["response"]["usage"] is None


def test_a_response_that_is_cut_is_incomplete(scripted):
    done = client(scripted).responses.create(model="tiny", input="say:long", max_output_tokens=20)
    assert done.status == "incomplete" and done.incomplete_details.reason == "max_output_tokens"
    events = list(client(scripted).responses.create(model="tiny", input="say:long", max_output_tokens=20, stream=True))
    assert events[-1].type == "response.incomplete" and events[-1].response.output[-1].status == "incomplete"


def test_a_failure_ends_the_stream_as_one(scripted):
    events = list(client(scripted).responses.create(model="tiny", input="say:fail", stream=True))
    assert events[-1].type == "response.failed" and "the step broke" in events[-1].response.error.message


def test_broken_calls(scripted):
    done = client(scripted).responses.create(model="tiny", input="say:broken", tools=[WEATHER])
    assert [item.type for item in done.output] == ["reasoning", "message"] and "<function=get_weather>" in done.output_text


def test_what_codex_sends(scripted):
    done = client(scripted).responses.create(
        model="tiny", store=False, stream=False, parallel_tool_calls=False, instructions="You are an agent.",
        input=[
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "say:two"}]},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        ],
        tools=[WEATHER, {"type": "web_search"}, {"type": "namespace", "name": "m", "tools": []}, {"type": "custom", "name": "x"}],
        reasoning={"effort": "high", "summary": "auto"}, include=["reasoning.encrypted_content"], prompt_cache_key="k",
        extra_body={"client_metadata": {"x": 1}}, service_tier="auto",
    )  # fmt: skip
    assert [item.type for item in done.output] == ["reasoning", "function_call"]
    assert "You are an agent.\n\nRules." in scripted.prompt() and "web_search" not in scripted.prompt()


def test_kept_responses(scripted):
    ask = client(scripted).responses
    done = ask.create(model="tiny", input="say:done")
    assert ask.retrieve(done.id).output_text == "It rains in Oslo."
    assert [item.content for item in ask.input_items.list(done.id).data] == ["say:done"]
    reference = {"type": "item_reference", "id": done.output[-1].id}
    ask.create(model="tiny", input=[{"role": "user", "content": "say:done"}, reference, {"role": "user", "content": "say:hello"}])
    assert "It rains in Oslo.<|im_end|>" in scripted.prompt()
    with pytest.raises(openai.BadRequestError, match="background"):
        ask.cancel(done.id)
    ask.delete(done.id)
    with pytest.raises(openai.NotFoundError):
        ask.retrieve(done.id)
    with pytest.raises(openai.BadRequestError) as gone:
        ask.create(model="tiny", input="x", previous_response_id=done.id)
    assert gone.value.param == "previous_response_id"


def test_counted_prompts(scripted):
    ask = client(scripted).responses
    counted = ask.input_tokens.count(model="tiny", input="say:done", tools=[WEATHER]).input_tokens
    assert counted == ask.create(model="tiny", input="say:done", tools=[WEATHER]).usage.input_tokens


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"input": 5}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "no"}]}, "input.0.id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
    ],
)
def test_wrong_fields_are_named(scripted, asked, field):
    with pytest.raises(openai.BadRequestError) as caught:
        client(scripted).responses.create(**{"model": "tiny", "input": "x", **asked})
    assert caught.value.param == field


def test_what_is_kept_is_bounded():
    store = Store(2000)
    for n in range(50):
        store.add(Kept({"id": f"r{n}", "output": []}, [{"id": f"i{n}", "type": "message"}], [{"content": "x" * 300}]))
        assert store.bytes <= 2000 and store.get(f"r{n}") is not None
    assert 1 < len(store) < 7 and store.get("r0") is None and store.item("i49") is not None and store.item("i0") is None
    oldest = next(n for n in range(50) if store.get(f"r{n}"))  # which makes it the newest
    store.add(Kept({"id": "more", "output": []}, [], [{"content": "x" * 300}]))
    assert store.get(f"r{oldest}") is not None
    store.add(Kept({"id": "huge", "output": []}, [], [{"content": "x" * 3000}]))
    assert store.get("huge") is None and store.get("more") is not None
    for name in ("more", "r49"):
        store.delete(name)
    assert store.bytes >= 0 and not store.delete("more")
