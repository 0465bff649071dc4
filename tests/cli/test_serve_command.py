"""`optiq serve`: what it refuses, what it says, how it ends; over the embedded model in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from adapter_files import paths, write_peft
from optiq.cli import main as edge
from optiq.models.generation import stop_ids
from optiq.models.load import load

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples" / "tiny-qwen3.5"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}


@contextmanager
def serving(*words, variables=None):
    """A running server, its first line of output, and a client."""
    command = [sys.executable, "-m", "optiq.cli", "serve", *map(str, words), "--port", "0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT | (variables or {})
    ) as child:
        try:
            lines = []
            for line in child.stdout:
                lines.append(line)
                if line == "}\n":
                    break
            told = json.loads("".join(lines) or child.stderr.read())
            with httpx.Client(base_url=told["url"], timeout=60, trust_env=False) as client:
                yield child, told, client
        finally:
            child.kill()


def chat(client, text="Once upon a time", **fields):
    return client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], **fields})


def test_it_serves_both_protocols_and_drains_at_the_end(tmp_path):
    model = load(TINY)[0]
    write_peft(tmp_path / "given", model, paths(model, "q_proj", "down_proj"), seed=1)
    write_peft(tmp_path / "more" / "other", model, paths(model, "o_proj"), seed=2)
    words = (TINY, "--kv-bits", 4, "--temp", 0, "--max-tokens", 7, "--adapter", f"mine={tmp_path / 'given'}")
    with serving(*words, "--adapter-dir", tmp_path / "more", "--alias", "gpt-x") as (child, told, client):
        assert told["model"] == "tiny-qwen3.5" and told["pid"] == child.pid
        plain = chat(client, model="gpt-x").json()
        assert plain["model"] == "tiny-qwen3.5" and plain["usage"]["completion_tokens"] == 7
        adapted = chat(client, model="tiny-qwen3.5:mine").json()
        assert adapted["model"] == "tiny-qwen3.5:mine" and adapted["choices"] != plain["choices"]
        assert chat(client, model="gpt-y").status_code == 404
        assert client.post("/v1/adapters", json={"name": "other"}).json()["mounted"] == ["mine", "other"]
        assert chat(client, model="other").status_code == 200
        body = {"model": "gpt-x", "max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}]}
        assert client.post("/v1/messages", json=body).json()["usage"]["output_tokens"] == 3
        assert client.get("/v1/messages").json()["type"] == "error" and "error" in client.get("/v1/nowhere").json()
        long = {"messages": [{"role": "user", "content": "Tell"}], "max_tokens": 1500, "stream": True, "model": "gpt-x"}
        with client.stream("POST", "/v1/chat/completions", json=long) as reply:
            lines = reply.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert child.wait(20) == 0
        log = child.stderr.read()
        assert "POST /v1/chat/completions 200" in log and "Once upon" not in log
        with pytest.raises(ProcessLookupError):
            os.kill(told["engine_pid"], 0)


@pytest.mark.slow
def test_an_interrupt_from_a_terminal_drains_and_the_second_one_ends():
    with serving("--model", TINY, "--api-key", "k") as (child, told, client):
        assert client.get("/health").status_code == 401
        client.headers["x-api-key"] = "k"
        with client.stream("POST", "/v1/chat/completions", json=_endless()) as reply:
            lines = reply.iter_lines()
            next(lines)
            for pid in (told["engine_pid"], child.pid):  # a terminal sends it to all of them
                os.kill(pid, signal.SIGINT)
            time.sleep(0.3)
            assert child.poll() is None
            child.send_signal(signal.SIGINT)
            assert child.wait(5) == 130


@pytest.mark.slow
def test_the_engine_dies_with_a_killed_server():
    with serving(TINY) as (child, told, client), client.stream("POST", "/v1/chat/completions", json=_endless()) as reply:
        lines = reply.iter_lines()
        next(lines)
        child.kill()
        until = time.monotonic() + 10
        while Path(f"/proc/{told['engine_pid']}").exists():
            assert time.monotonic() < until
            time.sleep(0.02)


def _endless():
    """A request whose reply does not end by itself for a while."""
    ban = {str(token): -100 for token in stop_ids(TINY)}
    messages = [{"role": "user", "content": "x"}]
    return {"messages": messages, "max_tokens": 4000, "n": 16, "stream": True, "logit_bias": ban, "temperature": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one model"),
        (["a", "--model", "b"], "give one model"),
        ([str(TINY), "--host", "0.0.0.0"], "add --api-key KEY"),
        ([str(TINY), "--api-key", "a b"], "white space"),
        ([str(TINY), "--temp", "11"], "--temp is 11"),
        ([str(TINY), "--max-tokens", "0"], "--max-tokens is 0"),
        ([str(TINY), "--memory-gb", "-1"], "--memory-gb is -1"),
        ([str(TINY), "--kv-bits", "4", "--kv-config", "x"], "leave one of the two out"),
        ([str(TINY), "--adapter", "a:b=x"], "other characters"),
        ([str(TINY), "--adapter", "a=x", "--adapter", "y/a"], "taken by"),
        ([str(TINY), "--adapter-dir", "/nowhere"], "--adapter-dir /nowhere is not a directory"),
        ([str(TINY), "--models-dir", "/nowhere"], "--models-dir /nowhere is not a directory"),
        ([str(TINY), "--allow-model", "x"], "--models-dir"),
        ([str(TINY), "--port", "70000"], "another --port"),
        (["/nowhere/model"], "no such directory"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, message, capsys, monkeypatch):
    monkeypatch.delenv("OPTIQ_API_KEY", raising=False)
    assert edge.main(["serve", *words]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.strip().splitlines()) == 1


@pytest.mark.slow
def test_what_only_the_engine_can_see_is_one_line_too(tmp_path, capsys):
    for words, message in (
        (["--adapter", str(tmp_path / "none")], "adapter 'none'"),
        (["--kv-config", str(tmp_path / "none.json")], "no kv config at"),
    ):
        assert edge.main(["serve", str(TINY), "--port", "0", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_drafts_change_no_text_and_are_counted():
    texts = []
    for words in ((), ("--mtp",)):
        with serving(TINY, "--temp", 0, "--memory-gb", 1, *words) as (_, _, client):
            texts.append(chat(client, max_tokens=60, enable_thinking=False).json()["choices"][0]["message"]["content"])
            found = re.search(r"^optiq_accepted_total\{.*\} (\d+)", _metrics(client), re.MULTILINE)
            assert (int(found[1]) > 0) == bool(words)
    assert texts[0] == texts[1] != ""


@pytest.mark.slow
def test_a_killed_engine_is_told_in_each_protocol_and_comes_back():
    with serving(TINY, "--memory-gb", 1, "--prefill-chunk", 64) as (child, told, client):
        asked = {"model": "tiny-qwen3.5", "max_tokens": 4000, "messages": [{"role": "user", "content": "x"}], "stream": True}
        for path, body in (("/v1/chat/completions", _endless()), ("/v1/messages", asked)):
            engine = _engine(child)
            with client.stream("POST", path, json=body) as reply:
                lines = reply.iter_lines()
                for _ in range(4):
                    next(lines)
                os.kill(engine, signal.SIGKILL)
                rest = [line for line in lines if line]
            assert any("error" in line for line in rest[-3:]), rest[-3:]
            down = client.post(path, json=body | {"stream": False})
            assert down.status_code == 503 and int(down.headers["retry-after"]) >= 1
            start = time.monotonic()
            while client.get("/ready").status_code != 200:
                assert time.monotonic() - start < 30 and client.get("/health").status_code == 200
                time.sleep(0.05)
            assert chat(client, max_tokens=3).status_code == 200 and child.poll() is None


@pytest.mark.slow
def test_a_client_that_leaves_while_its_prompt_is_read_cancels_it():
    with serving(TINY, "--memory-gb", 1, "--prefill-chunk", 64) as (_, _, client):
        body = {"prompt": list(range(100, 4000)), "max_tokens": 2}
        for stream in (True, False):
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=body | {"stream": stream}, timeout=0.1)
            start = time.monotonic()
            while 'state="reading"} 1' in _metrics(client):
                assert time.monotonic() - start < 5
        assert 'optiq_engine_finished_cancelled_total{model="tiny-qwen3.5"} 2.0' in _metrics(client)


def _metrics(client):
    return client.get("/metrics").text


def _engine(child):
    """The process id of a server's engine."""
    return int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[-1])


@pytest.mark.parametrize(
    "words", [("--memory-gb", "nan"), ("--max-body-mb", "inf"), ("--drain-s", "nan"), ("--idle-s", "-1")], ids=str
)
def test_amounts_that_are_none_are_one_line(words, capsys):
    assert edge.main(["serve", "/no/model", *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"optiq: error: {words[0]} is {words[1]}, expected at least 0 and at most 1e+09")


def test_a_host_that_no_address_can_have_is_one_line(capsys):
    assert edge.main(["serve", str(TINY), "--host", "bogus..host", "--api-key", "k"]) == 2
    assert capsys.readouterr().err.startswith("optiq: error: --host bogus..host is not an address of this machine (")
