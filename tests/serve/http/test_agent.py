"""The server's own Python tool: what clients see, what the model reads, and that nothing widens its limits."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from anthropic import Anthropic
from openai import OpenAI

from optiq.errors import ResourceError
from optiq.sandbox import Outcome, Policy, Runner, runner
from optiq.serve.http.agent import MOST_CHARACTERS, Python, told
from optiq.serve.http.app import make_app
from optiq.serve.http.context import Context, Limits
from optiq.serve.http.guard import Access
from optiq.serve.http.shelf import Shelf
from optiq.serve.parse.deltas import Call
from optiq.serve.request import Request
from optiq.serve.scheduler import Policy as Line
from optiq.serve.scripted import Script, ScriptedEngine
from serve_locally import listening, tiny_served

END = 4078  # <|im_end|>
PYTHON = [{"type": "python"}]


class Recorder(Runner):
    """Runs nothing; tells what it was asked."""

    def __init__(self) -> None:
        self.name = "recorder"
        self.asked: list[tuple[str, Policy]] = []
        self.now = self.most = self.cancelled = 0
        self.changed = threading.Lock()

    def run(
        self, program: str, policy: Policy | None = None, *, stdin: str = "", cancelled: threading.Event | None = None
    ) -> Outcome:
        assert policy is not None
        self.asked.append((program, policy))
        if program.startswith("wait"):
            assert cancelled is not None
            with self.changed:
                self.now, self.most = self.now + 1, max(self.most, self.now + 1)
            time.sleep(float(program.split()[1]) if " " in program else 0)
            if cancelled.wait(0 if " " in program else 60):
                self.cancelled += 1
            with self.changed:
                self.now -= 1
        if program == "broken":
            raise OSError(28, "No space left on device", "/private/path")
        return Outcome(0, f"ran {len(self.asked)}", "", 0.01)


def call(code: str, name: str = "python") -> str:
    return f"<tool_call>\n<function={name}>\n<parameter=code>\n{code}\n</parameter>\n</function>\n</tool_call>"


def script_of(tokenizer: Any) -> Callable[[Request], Script]:
    """`run:CODE` makes a call, `always:CODE` one in every turn; a result is repeated."""

    def script(request: Request) -> Script:
        text = tokenizer.decode(list(request.prompt))
        question, *answers = re.split(r"<tool_response>\n", text)
        word, code = re.findall(r"(run|always|other):([^\s<]+)", question)[-1]
        thought = "Hm.\n</think>\n\n" if text.endswith("<think>\n") else ""
        if answers and (word != "always" or "<tools>" not in text):
            reply = f"It says {answers[-1].split('</tool_response>')[0].strip()}."
        else:
            reply = "Let me see.\n\n" + call(code.replace("_", " "), "shell" if word == "other" else "python")
        return Script([*tokenizer.encode(thought + reply, add_special_tokens=False), END])

    return script


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def site(tokenizer: Any, python: Python | None) -> Iterator[str]:
    served = tiny_served(lambda: ScriptedEngine(tokenizer, script_of(tokenizer), Line(max_rows=8)), tokenizer, max_tokens=1000)
    with listening(make_app(Context(Shelf(served), Limits(ping_s=1.0), python=python), Access())) as url:
        yield url
    served.gateway.close()


@pytest.fixture
def url(tokenizer: Any, recorder: Recorder) -> Iterator[str]:
    yield from site(tokenizer, Python(recorder, turns=3))


def ask(url: str, text: str, **body: Any) -> httpx.Response:
    message = {"messages": [{"role": "user", "content": text}], "tools": PYTHON, **body}
    return httpx.post(f"{url}/v1/chat/completions", json=message, timeout=60)


def test_a_program_runs_between_two_turns(url: str, recorder: Recorder) -> None:
    found = ask(url, "run:print(6*7)").json()
    message = found["choices"][0]["message"]
    assert message["content"] == "Let me see.\n\nIt says ran 1." and "tool_calls" not in message
    assert found["choices"][0]["finish_reason"] == "stop" and message["reasoning_content"].startswith("Hm.")
    (run,) = message["tool_runs"]
    assert (run["code"], run["stdout"], run["exit_code"], run["tier"]) == ("print(6*7)", "ran 1", 0, "recorder")
    assert recorder.asked[0][0] == "print(6*7)"
    assert found["usage"]["prompt_tokens"] > 2 * 20  # both turns


def test_a_stream_tells_runs_where_they_happen(url: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="none", http_client=httpx.Client(verify=False)) as client:
        stream = client.chat.completions.create(
            model="",
            messages=[{"role": "user", "content": "run:1"}],
            tools=PYTHON,
            stream=True,  # type: ignore[arg-type]
        )
        kinds, text = [], ""
        for chunk in stream:
            delta = chunk.choices[0].delta.model_dump(exclude_none=True)
            text += delta.get("content", "")
            kinds += [key for key in ("content", "tool_runs", "tool_calls") if delta.get(key)]
            reason = chunk.choices[0].finish_reason
    assert text == "Let me see.\n\nIt says ran 1." and reason == "stop"
    at = kinds.index("tool_runs")
    assert set(kinds[:at]) == set(kinds[at + 1 :]) == {"content"} and kinds.count("tool_runs") == 1


INTERPRETER = [{"type": "code_interpreter", "container": {"type": "auto"}}]
EXECUTION = [{"type": "code_execution_20250522", "name": "code_execution"}]


@pytest.mark.parametrize("stream", [False, True])
def test_responses_have_runs_as_items(url: str, recorder: Recorder, stream: bool) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="none", http_client=httpx.Client(verify=False)) as client:
        if stream:
            with client.responses.stream(model="tiny", input="run:print(6*7)", tools=INTERPRETER) as events:
                kinds = [event.type for event in events]
                first = events.get_final_response()
            wanted = ["in_progress", "interpreting", "completed"]
            assert [kind for kind in kinds if "interpreter_call." in kind] == [
                f"response.code_interpreter_call.{what}" for what in wanted
            ]
        else:
            first = client.responses.create(model="tiny", input="run:print(6*7)", tools=INTERPRETER)
        (run,) = [item for item in first.output if item.type == "code_interpreter_call"]
        assert (run.code, run.status, run.outputs[0].logs) == ("print(6*7)", "completed", "ran 1")
        kinds = [item.type for item in first.output if item.type != "reasoning"]
        assert kinds == ["message", "code_interpreter_call", "message"]
        assert first.output_text.endswith("It says ran 1.") and first.status == "completed"
        then = client.responses.create(model="tiny", input="Well?", previous_response_id=first.id)
        sent = [{"role": "user", "content": "run:print(6*7)"}, *first.output, {"role": "user", "content": "Well?"}]
        again = client.responses.create(model="tiny", input=sent)
    assert then.output_text == again.output_text == "It says ran 1."  # the model reads what it ran
    assert then.usage.input_tokens == again.usage.input_tokens and len(recorder.asked) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_messages_have_runs_as_blocks(url: str, recorder: Recorder, stream: bool) -> None:
    question = {"role": "user", "content": "run:print(6*7)"}
    with Anthropic(base_url=url, api_key="none") as client:
        if stream:
            with client.messages.stream(model="tiny", max_tokens=500, messages=[question], tools=EXECUTION) as events:
                found = events.get_final_message()
        else:
            found = client.messages.create(model="tiny", max_tokens=500, messages=[question], tools=EXECUTION)
        text, use, result, answer = found.content
        kinds = [block.type for block in found.content]
        assert kinds == ["text", "server_tool_use", "code_execution_tool_result", "text"]
        assert use.input == {"code": "print(6*7)"} and result.tool_use_id == use.id and use.id.startswith("srvtoolu_")
        assert (result.content.stdout, result.content.return_code) == ("ran 1", 0)
        assert answer.text.strip() == "It says ran 1." and found.stop_reason == "end_turn"
        sent = [question, {"role": "assistant", "content": found.content}, {"role": "user", "content": "Well?"}]
        again = client.messages.create(model="tiny", max_tokens=500, messages=sent)
        longer = client.messages.count_tokens(model="tiny", messages=[question], tools=EXECUTION).input_tokens
        plain = client.messages.count_tokens(model="tiny", messages=[question]).input_tokens
    assert again.content[0].text == "It says ran 1." and len(recorder.asked) == 1  # the model reads what it ran
    assert longer > plain  # the tool's description counts


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("responses", {"input": "run:1", "tools": INTERPRETER}),
        ("messages", {"messages": [{"role": "user", "content": "run:1"}], "tools": EXECUTION}),
    ],
)
def test_no_protocol_runs_where_the_server_does_not(tokenizer: Any, path: str, asked: dict[str, Any]) -> None:
    for url in site(tokenizer, None):
        found = httpx.post(f"{url}/v1/{path}", json=asked, timeout=60)
        assert found.status_code == 400 and "--tools python" in found.json()["error"]["message"]


def test_a_program_that_is_stopped_is_told_by_each_protocol(tokenizer: Any) -> None:
    class Stops(Recorder):
        def run(self, program: str, policy: Policy | None = None, **_: Any) -> Outcome:
            return Outcome(None, "so far", "", 1.0, "time")

    for url in site(tokenizer, Python(Stops(), turns=3)):
        first = httpx.post(f"{url}/v1/responses", json={"input": "run:1", "tools": INTERPRETER}, timeout=60).json()
        (run,) = [item for item in first["output"] if item["type"] == "code_interpreter_call"]
        assert run["status"] == "failed" and run["outputs"][0]["logs"] == "so far\n[stopped: time]"
        body = {"messages": [{"role": "user", "content": "run:1"}], "tools": EXECUTION}
        found = httpx.post(f"{url}/v1/messages", json=body, timeout=60).json()
        (result,) = [block["content"] for block in found["content"] if block["type"] == "code_execution_tool_result"]
        assert (result["return_code"], result["stdout"], result["stderr"]) == (137, "so far", "[stopped: time]")


def test_turns_come_to_an_end(url: str, recorder: Recorder) -> None:
    message = ask(url, "always:1").json()["choices"][0]["message"]
    assert len(message["tool_runs"]) == 3 and message["content"].endswith("It says ran 3.")


def test_nothing_in_a_request_widens_the_limits(url: str, recorder: Recorder) -> None:
    wide = [
        {"type": "python", "seconds": 9e9, "memory_bytes": 1 << 50, "unsafe": True, "function": {"name": "x", "parameters": {}}}
    ]
    assert ask(url, "run:1", tools=wide, tool_turns=99, python={"seconds": 9e9}).status_code in (200, 400)
    ask(url, "run:1")
    usual = Python(recorder).policy
    assert recorder.asked and all(policy.seconds <= usual.seconds for _, policy in recorder.asked)
    assert {(p.memory_bytes, p.readable, p.writable, p.processes) for _, p in recorder.asked} == {
        (usual.memory_bytes, (), (), usual.processes)
    }


def test_a_call_of_something_else_is_told_to_the_model(url: str, recorder: Recorder) -> None:
    message = ask(url, "other:1").json()["choices"][0]["message"]
    assert not recorder.asked and "there is no tool 'shell'" in message["content"]
    assert message["tool_runs"][0]["stopped"] == "refused"


@pytest.mark.parametrize(
    ("body", "field"),
    [({"n": 2}, "n"), ({"tools": [*PYTHON, {"type": "function", "function": {"name": "mine"}}]}, "tools.0")],
)
def test_what_cannot_be_combined_is_refused(url: str, recorder: Recorder, body: dict[str, Any], field: str) -> None:
    found = ask(url, "run:1", **body)
    assert found.status_code == 400 and found.json()["error"]["param"] == field and not recorder.asked


def test_a_server_without_the_tool_refuses(tokenizer: Any) -> None:
    for url in site(tokenizer, None):
        found = ask(url, "run:1")
        assert found.status_code == 400 and "--tools python" in found.json()["error"]["message"]


def test_it_is_off_where_a_request_does_not_ask(url: str, recorder: Recorder) -> None:
    tool = {"type": "function", "function": {"name": "python", "parameters": {"type": "object"}}}
    found = ask(url, "run:1", tools=[tool]).json()["choices"][0]
    assert found["finish_reason"] == "tool_calls" and not recorder.asked


def test_in_a_real_sandbox(tokenizer: Any) -> None:
    try:
        apart = runner()
    except ResourceError as error:
        pytest.skip(str(error))
    for url in site(tokenizer, Python(apart)):
        found = ask(url, f"run:import_socket;socket.create_connection(('127.0.0.1',{url.rsplit(':', 1)[1]}))").json()
        (run,) = found["choices"][0]["message"]["tool_runs"]
        assert run["exit_code"] == 1 and "Error" in run["stderr"] and run["tier"] == apart.name
        assert "[exit code 1]" in found["choices"][0]["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_program_ends_with_its_client(url: str, recorder: Recorder, stream: bool) -> None:
    message = {"messages": [{"role": "user", "content": "run:wait"}], "tools": PYTHON, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/chat/completions", json=message, timeout=httpx.Timeout(60, read=0.9))
    deadline = time.monotonic() + 30
    while not (recorder.cancelled and recorder.now == 0):
        assert time.monotonic() < deadline, (recorder.asked, recorder.now)
        time.sleep(0.01)


def test_cancelled_programs_keep_their_place_until_they_have_ended(recorder: Recorder) -> None:
    async def impatient() -> None:
        python = Python(recorder, at_once=2)
        for _ in range(4):
            tasks = [asyncio.create_task(python.run(Call("1", "python", '{"code": "wait 0.2"}'), 60)) for _ in range(3)]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await python.run(Call("1", "python", '{"code": "1"}'), 60)

    asyncio.run(impatient())
    assert recorder.most <= 2 and recorder.now == 0


def test_the_wait_for_others_counts(recorder: Recorder) -> None:
    async def busy() -> tuple[Any, Any]:
        python = Python(recorder, at_once=1)
        first = asyncio.create_task(python.run(Call("1", "python", '{"code": "wait 1"}'), 60))
        await asyncio.sleep(0.2)
        second = await python.run(Call("2", "python", '{"code": "1"}'), 0.1)
        return await first, second

    first, second = asyncio.run(busy())
    assert first.outcome.code == 0 and second.outcome.stopped == "refused" and len(recorder.asked) == 1
    assert "time for programs is over" in second.outcome.stderr
    late = asyncio.run(Python(recorder).run(Call("3", "python", '{"code": "1"}'), 0.0))
    assert late.outcome.stopped == "refused" and len(recorder.asked) == 1


@pytest.mark.parametrize("arguments", ["[" * 100_000, '{"code": "\\ud800"}', '{"code": "\\u0000"}', '{"code": 1}', "1"])
def test_arguments_that_are_no_program_are_told(recorder: Recorder, arguments: str) -> None:
    ran = asyncio.run(Python(recorder).run(Call("1", "python", arguments), 60))
    assert ran.outcome.stopped == "refused" and ran.outcome.stderr.startswith("the arguments are not") and not recorder.asked


def test_a_sandbox_that_cannot_start_is_told_without_paths(url: str) -> None:
    message = ask(url, "run:broken").json()["choices"][0]["message"]
    assert "could not be started: No space left on device" in message["content"] and "/private" not in message["content"]


def test_all_turns_together_keep_to_max_tokens(url: str) -> None:
    found = ask(url, "always:1").json()
    whole = found["usage"]["completion_tokens"]
    cut = ask(url, "always:1", max_tokens=whole - 5).json()
    assert cut["usage"]["completion_tokens"] <= whole - 5 and cut["choices"][0]["finish_reason"] == "length"


def test_what_the_model_reads_is_bounded() -> None:
    text = told(Outcome(None, "a" * 10**6, "b" * 10**6, 1.0, "output"))
    assert len(text) < MOST_CHARACTERS + 100 and text.startswith("aaa") and text.endswith("[stopped: output]")
    assert told(Outcome(0, "", "", 1.0)) == "[nothing was printed]"
    assert json.dumps(told(Outcome(-9, "x", "", 1.0))) == '"x\\n[exit code -9]"'
