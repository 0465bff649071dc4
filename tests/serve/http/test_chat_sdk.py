"""The official `openai` SDK against chat and text completions: its strict helpers, whole and streamed, sync and async."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import mlx.core as mx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field

from openai_clients import client, plain
from optiq.models.load import load
from serve_locally import TINY, app_of, listening, tiny_engine, tiny_served, wait_until

MODES = ["sync", "sync-stream", "async", "async-stream"]


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
LETTERS = {"type": "regex", "grammar": "[a-zü ]{20}"}  # a reply that ends by itself: the strict helpers refuse any other
TOOL = pydantic_function_tool(GetWeather, name="get_weather")


def say(word: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"say:{word}"}]


def chat(site: Any, mode: str, **asked: Any) -> Any:
    """The completion as the SDK's strict helper gives it; of a stream, what its accumulator made."""
    asked = {"model": "tiny", **asked}

    async def go() -> Any:
        async with AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0, http_client=plain()) as asynchronous:
            if mode == "async":
                return await asynchronous.chat.completions.parse(**asked)
            async with asynchronous.chat.completions.stream(**asked) as stream:
                async for _ in stream:
                    pass
                return await stream.get_final_completion()

    if mode.startswith("async"):
        return asyncio.run(go())
    with client(site) as synchronous:
        if mode == "sync":
            return synchronous.chat.completions.parse(**asked)
        with synchronous.chat.completions.stream(**asked) as stream:
            for _ in stream:
                pass
            return stream.get_final_completion()


@pytest.mark.parametrize("mode", MODES)
class TestChat:
    def test_text_and_reasoning(self, scripted, mode):
        done = chat(scripted, mode, messages=say("hello"), **stream_usage(mode))
        (choice,) = done.choices
        assert choice.message.content == "Hello there, my friend – grüße 😀!"
        assert choice.message.reasoning_content == "Let me think about it."
        assert choice.message.role == "assistant" and choice.finish_reason == "stop" and choice.message.tool_calls is None
        usage = done.usage
        assert usage.prompt_tokens == len(scripted.gateway.requests[-1].prompt)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
        assert done.model == "tiny" and done.id.startswith("chatcmpl-")

    def test_calls(self, scripted, mode):
        done = chat(scripted, mode, messages=say("two"), tools=[TOOL])
        message = done.choices[0].message
        assert done.choices[0].finish_reason == "tool_calls" and not message.content
        assert [call.function.parsed_arguments for call in message.tool_calls] == [
            GetWeather(city="Oslo", days=3), GetWeather(city="Bonn", days=1),
        ]  # fmt: skip
        assert len({call.id for call in message.tool_calls}) == 2

    def test_one_call_where_several_are_not_wanted(self, scripted, mode):
        done = chat(scripted, mode, messages=say("two"), tools=[TOOL], parallel_tool_calls=False)
        (call,) = done.choices[0].message.tool_calls
        assert call.function.parsed_arguments.city == "Oslo" and done.choices[0].finish_reason == "tool_calls"
        assert done.choices[0].message.reasoning_content

    def test_a_conversation_with_results(self, scripted, mode):
        first = chat(scripted, mode, messages=say("call"), tools=[TOOL])
        message = first.choices[0].message
        assert message.content == "I will look."
        call = message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": "rain. say:done"}
        told = {"role": "assistant", "content": message.content, "reasoning_content": message.reasoning_content}
        told["tool_calls"] = [call.model_dump(exclude={"function": {"parsed_arguments"}})]
        done = chat(scripted, mode, messages=[*say("call"), told, result], tools=[TOOL])
        assert done.choices[0].message.content == "It rains in Oslo."
        text = scripted.prompt()
        assert '<parameter=city>\nOslo "north"\n</parameter>' in text and "<tool_response>\nrain." in text
        assert "<think>\nLet me think about it.\n</think>\n\nI will look." in text

    def test_parsed_replies(self, scripted, mode):
        done = chat(scripted, mode, messages=say("json"), response_format=GetWeather)
        assert done.choices[0].message.parsed == GetWeather(city="Oslo", days=3)
        spec = scripted.gateway.requests[-1].grammar
        assert spec.kind == "json_schema" and json.loads(spec.text)["required"] == ["city", "days"]
        assert scripted.gateway.requests[-1].after  # it binds behind the reasoning

    def test_choices(self, scripted, mode):
        done = chat(scripted, mode, messages=say("hello"), n=3, seed=5)
        assert [choice.index for choice in done.choices] == [0, 1, 2]
        assert {choice.message.content for choice in done.choices} == {"Hello there, my friend – grüße 😀!"}
        assert [request.sampling.seed for request in scripted.gateway.requests[-3:]] == [5, 6, 7]

    def test_stops(self, scripted, mode):
        done = chat(scripted, mode, messages=say("hello"), stop=["friend", "nothing"])
        assert done.choices[0].message.content == "Hello there, my " and done.choices[0].finish_reason == "stop"

    def test_broken_calls_are_text(self, scripted, mode):
        done = chat(scripted, mode, messages=say("broken"), tools=[WEATHER if "stream" in mode else TOOL])
        message = done.choices[0].message
        assert "<function=get_weather>" in message.content and done.choices[0].finish_reason == "stop"
        if "stream" not in mode:
            assert not message.tool_calls

    def test_log_probabilities_with_bytes(self, tiny, mode):
        done = chat(
            tiny,
            mode,
            messages=say("hello"),
            logprobs=True,
            top_logprobs=3,
            seed=1,
            reasoning_effort="none",
            response_format=LETTERS,
        )
        told = done.choices[0].logprobs.content
        assert 0 < len(told) <= 20
        for token in told:
            assert math.exp(token.logprob) <= 1 and len(token.top_logprobs) == 3
            assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        raw = b"".join(bytes(token.bytes) for token in told).decode("utf-8", "replace")
        assert raw.strip() == done.choices[0].message.content.strip()

    def test_seeds(self, tiny, mode):
        asked = {"messages": say("hello"), "seed": 11, "response_format": LETTERS, "reasoning_effort": "none"}
        texts = [chat(tiny, mode, **asked).choices[0].message.content for _ in range(2)]
        other = chat(tiny, mode, **{**asked, "seed": 12}).choices[0].message.content
        assert texts[0] == texts[1] != other


def stream_usage(mode: str) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if "stream" in mode else {}


def test_chunks_come_in_the_order_of_the_api(scripted):
    chunks = list(
        client(scripted).chat.completions.create(
            model="tiny", messages=say("call"), tools=[TOOL], stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["tool_calls"]
    assert not chunks[-1].choices and chunks[-1].usage.total_tokens > 0 and all(c.usage is None for c in chunks[:-1])
    calls = [chunk.choices[0].delta.tool_calls[0] for chunk in chunks[:-1] if chunk.choices[0].delta.tool_calls]
    assert calls[0].id and calls[0].function.name == "get_weather" and calls[0].function.arguments == ""
    assert all(call.id is None and call.function.name is None for call in calls[1:]) and len(calls) > 3
    assert json.loads("".join(call.function.arguments for call in calls)) == {"city": 'Oslo "north"', "days": 3}


def test_lengths(scripted):
    done = client(scripted).chat.completions.create(model="tiny", messages=say("long"), max_completion_tokens=20)
    assert done.choices[0].finish_reason == "length" and done.usage.completion_tokens == 20
    with pytest.raises(openai.LengthFinishReasonError):
        client(scripted).chat.completions.parse(
            model="tiny", messages=say("long"), max_completion_tokens=20, response_format=GetWeather
        )


def test_settings_reach_the_engine(scripted):
    client(scripted).chat.completions.create(
        model="tiny", messages=say("hello"), temperature=0.3, top_p=0, presence_penalty=0.5, frequency_penalty=0.25,
        logit_bias={"5": -100, "6": 1.5}, seed=-3, stop="x", extra_body={"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1},
    )  # fmt: skip
    sampling = scripted.gateway.requests[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (0.3, 0, 0.1, 1.1)
    assert 0 < sampling.top_p < 1e-3 and sampling.logit_bias == {5: -100, 6: 1.5}
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, 0.25)


def test_the_ways_to_think(scripted):
    ask = client(scripted).chat.completions.create
    for asked, thinks, budget in [
        ({}, True, None),
        ({"reasoning_effort": "none"}, False, None),
        ({"reasoning_effort": "low"}, True, 1024),
        ({"reasoning_effort": "high"}, True, None),
        ({"extra_body": {"enable_thinking": False}}, False, None),
        ({"extra_body": {"thinking_budget": 7}}, True, 7),
        ({"extra_body": {"thinking_budget": 0}}, False, None),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, False, None),
        ({"reasoning_effort": "low", "extra_body": {"chat_template_kwargs": {"thinking_budget": 9}}}, True, 9),
    ]:
        message = ask(model="tiny", messages=say("hello"), **asked).choices[0].message
        assert hasattr(message, "reasoning_content") == thinks, asked
        assert scripted.gateway.requests[-1].thinking_budget == budget, asked


def test_a_budget_ends_the_reasoning(tiny):
    ask = client(tiny).chat.completions.create
    done = ask(model="tiny", messages=say("hello"), max_tokens=30, seed=3, extra_body={"thinking_budget": 6})
    assert done.usage.completion_tokens_details.reasoning_tokens <= 7  # the closing tag is one of them
    assert done.choices[0].message.content


def test_prefixes_are_told_as_cached(tiny):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "once upon a time " * 40}], "max_tokens": 2}
    first, second = (client(tiny).chat.completions.create(**asked).usage for _ in range(2))
    cached = [usage.prompt_tokens_details.cached_tokens for usage in (first, second)]
    assert cached[0] == 0 and 64 <= cached[1] < second.prompt_tokens


class Place(BaseModel):
    name: str = Field(max_length=5)
    kind: str = Field(json_schema_extra={"enum": ["town", "river"]})
    size: int = Field(ge=1, le=9)


@pytest.mark.parametrize("thinks", [True, False])
def test_schemas_are_enforced(tiny, thinks):
    done = client(tiny).chat.completions.parse(
        model="tiny", messages=say("hello"), response_format=Place, temperature=1.5, max_tokens=400, seed=2,
        extra_body={"enable_thinking": thinks, "thinking_budget": 8 if thinks else None},
    )  # fmt: skip
    place = done.choices[0].message.parsed
    assert place.kind in ("town", "river") and 1 <= place.size <= 9 and len(place.name) <= 5


@pytest.mark.parametrize("kind", ["json_object", "regex", "lark"])
def test_other_formats_are_enforced(tiny, kind):
    grammar = {"regex": {"grammar": "[ab]{3}"}, "lark": {"grammar": 'start: "x" "y"*'}, "json_object": {}}[kind]
    done = client(tiny).chat.completions.create(
        model="tiny", messages=say("hello"), temperature=1.5, max_tokens=60, seed=4,
        response_format={"type": kind, **grammar}, reasoning_effort="none",
    )  # fmt: skip
    text = done.choices[0].message.content
    assert {"json_object": text.lstrip()[:1] == "{", "regex": set(text) <= set("ab"), "lark": set(text) <= set("xy")}[kind]


def test_a_grammar_that_fails_on_the_way_is_the_requests_fault(tiny):
    lark = {"type": "lark", "grammar": "start: start"}
    with pytest.raises(openai.BadRequestError, match="grammar"):
        client(tiny).chat.completions.create(
            model="tiny", messages=say("hello"), max_tokens=9, response_format=lark, reasoning_effort="none"
        )


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "set_level"}}])
@pytest.mark.parametrize("thinks", [True, False])
def test_calls_are_enforced(tiny, choice, thinks):
    level = {"type": "object", "properties": {"level": {"type": "integer", "minimum": 1, "maximum": 5}}, "required": ["level"]}
    colour = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    tools = [
        {"type": "function", "function": {"name": "set_level", "parameters": level}},
        {"type": "function", "function": {"name": "set_colour", "parameters": colour}},
    ]
    for seed in range(3):
        done = client(tiny).chat.completions.create(
            model="tiny", messages=say("hello"), tools=tools, tool_choice=choice, temperature=1.5, seed=seed, max_tokens=200,
            parallel_tool_calls=False, extra_body={"enable_thinking": thinks, "thinking_budget": 4},
        )  # fmt: skip
        (call,) = done.choices[0].message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "set_level" or choice == "required"
        assert 1 <= arguments["level"] <= 5 if call.function.name == "set_level" else arguments["colour"] in ("red", "blue")
        assert done.choices[0].finish_reason == "tool_calls"


def test_cached_tokens_are_told_where_one_call_ends_the_reply(tiny):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    for known in (False, True):
        done = client(tiny).chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a fox and a crow " * 40}], tools=[tool], tool_choice="required",
            parallel_tool_calls=False, reasoning_effort="none",
        )  # fmt: skip
        assert done.choices[0].message.tool_calls and (done.usage.prompt_tokens_details.cached_tokens >= 64) == known


def test_no_calls_where_none_may_be(scripted):
    done = client(scripted).chat.completions.create(model="tiny", messages=say("call"), tools=[WEATHER], tool_choice="none")
    assert done.choices[0].message.tool_calls is None and "get_weather" in done.choices[0].message.content
    assert "# Tools" not in scripted.prompt()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "warm"}, "temperature"),
    ({"temperature": 11}, "temperature"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "nobody", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.content.0"),
    ({"n": 1000}, "n"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"stop": ""}, "stop"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools.0.function.name"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"max_tokens": 0}, "max_tokens"),
]


@pytest.mark.parametrize(("asked", "field"), WRONG, ids=[field for _, field in WRONG])
def test_wrong_fields_are_named(scripted, asked, field):
    with pytest.raises(openai.BadRequestError) as caught:
        client(scripted).chat.completions.create(**{"model": "tiny", "messages": say("hello"), **asked})
    assert caught.value.param == field and caught.value.type == "invalid_request_error" and field in caught.value.message


def test_what_cannot_be_enforced_is_refused_by_its_keyword(tiny):
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client(tiny).chat.completions.create(
            model="tiny", messages=say("hello"), response_format={"type": "json_schema", "json_schema": {"schema": schema}}
        )
    strict = {"type": "function", "function": {"name": "f", "strict": True, "parameters": schema}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client(tiny).chat.completions.create(model="tiny", messages=say("hello"), tools=[strict], tool_choice="required")


def test_unknown_fields_and_tools_are_passed_over(scripted):
    done = client(scripted).chat.completions.create(
        model="tiny", messages=[{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, *say("hello")[1:]],
        tools=[{"type": "web_search"}], user="me", metadata={"a": "b"}, extra_body={"whatever": {"x": [1]}},
    )  # fmt: skip
    assert done.choices[0].message.content.startswith("Hello")
    assert "<|im_start|>system\nBe kind.<|im_end|>" in scripted.prompt()


def test_typed_errors(scripted, tiny):
    with pytest.raises(openai.NotFoundError) as missing:
        client(scripted).chat.completions.create(model="nothing", messages=say("hello"))
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as long:
        client(tiny).completions.create(model="tiny", prompt=[5] * 5000)
    assert long.value.code == "context_length_exceeded" or "4096" in str(long.value)
    with pytest.raises(openai.APIError, match="the step broke"):
        list(client(scripted).chat.completions.create(model="tiny", messages=say("fail"), stream=True))
    with pytest.raises(openai.InternalServerError):
        client(scripted).chat.completions.create(model="tiny", messages=say("fail"))


def test_retries(scripted):
    scripted.gateway.ready = False
    try:
        with pytest.raises(openai.InternalServerError) as down:
            client(scripted).chat.completions.create(model="tiny", messages=say("hello"))
        assert down.value.status_code == 503 and int(down.value.response.headers["retry-after"]) >= 1
        before = scripted.gateway.refused
        with pytest.raises(openai.InternalServerError):
            client(scripted, max_retries=1).chat.completions.create(model="tiny", messages=say("hello"), stream=True)
        assert scripted.gateway.refused - before == 2
    finally:
        scripted.gateway.ready = True


def test_clients_that_leave_cancel(scripted):
    with client(scripted).chat.completions.create(model="tiny", messages=say("slow"), stream=True) as stream:
        next(iter(stream))
    wait_until(lambda: len(scripted.gateway.cancelled) >= 1)
    with pytest.raises(openai.APITimeoutError):
        client(scripted, timeout=0.2).chat.completions.create(model="tiny", messages=say("slow"), n=2)
    wait_until(lambda: len(scripted.gateway.cancelled) >= 3)


@pytest.mark.parametrize("stream", [False, True])
def test_completions(scripted, stream):
    ask = client(scripted).completions.create
    told = ask(model="tiny", prompt=["say:done A", "say:hello B"], n=2, echo=True, stream=stream, max_tokens=50)
    texts = ["", "", "", ""]
    for part in told if stream else [told]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == ["say:done AIt rains in Oslo."] * 2 + ["say:hello BHello there, my friend – grüße 😀!"] * 2


def test_texts_are_scored(tiny):
    ask = client(tiny).completions.create
    text = "Once upon a time there was a little girl. " * 6
    whole = ask(model="tiny", prompt=text, echo=True, logprobs=2, max_tokens=0)
    told = whole.choices[0].logprobs
    ids = tiny.tokenizer.encode(text, add_special_tokens=False)
    assert whole.choices[0].text == text and whole.usage.completion_tokens == 0
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == len(ids)
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None and all(x <= 0 for x in told.token_logprobs[1:])
    assert "".join(told.tokens) == text and [text[at] for at in told.text_offset[:4]] == [t[0] for t in told.tokens[:4]]
    again = ask(model="tiny", prompt=ids, echo=True, logprobs=2, max_tokens=3, temperature=0)
    assert again.choices[0].logprobs.token_logprobs[: len(ids)] == told.token_logprobs
    assert len(again.choices[0].logprobs.tokens) == len(ids) + 3


def test_scores_are_those_of_the_model(tiny):
    model, tokenizer = load(TINY)
    text = "Tom has 5 apples and buys 3 more. How many apples does he have? " * 3
    ids = tokenizer.encode(text, add_special_tokens=False)
    logits = model(mx.array([ids]))[0].astype(mx.float32)
    expected = (logits - mx.logsumexp(logits, -1, keepdims=True)).tolist()
    told = client(tiny).completions.create(model="tiny", prompt=text, echo=True, logprobs=1, max_tokens=1).choices[0].logprobs
    for place, token in enumerate(ids[1:]):
        assert told.token_logprobs[place + 1] == pytest.approx(expected[place][token], abs=0.05)


def test_wrong_prompts(scripted):
    for asked, field in [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1, 9000]]}, "prompt.0"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs": -1}, "logprobs"),
        ({"prompt": "a", "suffix": "z"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            client(scripted).completions.create(model="tiny", **asked)
        assert caught.value.param == field
    with pytest.raises(openai.BadRequestError, match="empty"):
        client(scripted).completions.create(model="tiny", prompt="")


def test_models(scripted):
    (model,) = client(scripted).models.list().data
    assert (model.id, model.owned_by, model.context_length) == ("tiny", "optiq", 4096)
    assert model.settings["temperature"] == {"value": 1.0, "source": "generation_config"}
    assert client(scripted).models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client(scripted).models.retrieve("other")


@pytest.mark.parametrize("asked", [{"model": "tiny:sql"}, {"model": "sql"}, {"model": "tiny", "extra_body": {"adapter": "sql"}}])
def test_adapters_are_chosen_by_request(scripted, asked):
    asyncio.run(scripted.gateway.mount("sql", "/anywhere"))
    try:
        done = client(scripted).chat.completions.create(messages=say("hello"), **asked)
        assert done.model == "tiny:sql" and scripted.gateway.requests[-1].adapter == "sql"
        client(scripted).completions.create(prompt="x", **asked)
        assert scripted.gateway.requests[-1].adapter == "sql"
        client(scripted).responses.create(input="x", **asked)
        assert scripted.gateway.requests[-1].adapter == "sql"
        assert [model.id for model in client(scripted).models.list().data] == ["tiny", "tiny:sql"]
    finally:
        asyncio.run(scripted.gateway.unmount("sql"))
    with pytest.raises(openai.NotFoundError):
        client(scripted).chat.completions.create(messages=say("hello"), **asked)


def test_models_that_open_their_reasoning_themselves(tokenizer):
    template = (TINY / "chat_template.jinja").read_text()
    unopened = template.replace("{{- '<think>\\n' }}", "")
    assert unopened != template
    served = tiny_served(tiny_engine, tokenizer, template=unopened, template_sha256="")
    asked = {
        "model": "tiny", "messages": say("hello"), "max_tokens": 300, "seed": 1, "extra_body": {"thinking_budget": 3},
        "response_format": {"type": "regex", "grammar": "[abc]{4}"},
    }  # fmt: skip
    with listening(app_of(served)) as url:
        ask = OpenAI(
            base_url=f"{url}/v1", api_key="none", http_client=openai.DefaultHttpxClient(verify=False)
        ).chat.completions.create
        forced = ask(**asked, logit_bias={"4094": 100})
        assert set(forced.choices[0].message.content) <= set("abc") and len(forced.choices[0].message.content) == 4
        assert forced.usage.completion_tokens_details.reasoning_tokens >= 3
        without = ask(**asked, logit_bias={"4094": -100})
        assert set(without.choices[0].message.content) <= set("abc")
        assert without.usage.completion_tokens_details.reasoning_tokens == 0
    served.gateway.close()
