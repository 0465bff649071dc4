"""What all requests pass: errors in their protocol's shape, hosts, origins, keys, sizes, times, clients that go away."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

import serving
from optiq.errors import InputError
from optiq.serve.http.context import Limits, Places
from optiq.serve.http.guard import Access
from optiq.serve.http.runner import HEAD_BYTES, bind
from serving import ABORT, FAIL, HANG, SAY, SLOW, plan, site, until

FIRST = "optiq_time_to_first_token_seconds_count"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(serving.__file__).parent), *sys.path]))


def run(test):
    """A test that is a coroutine."""
    return asyncio.run(asyncio.wait_for(test(), 60))


def raw(port, data, seconds=5.0, buffer=None):
    """What a server says to some bytes until it closes, or None where it does not close in time."""
    with socket.socket() as sock:
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(seconds)
        sock.connect(("127.0.0.1", port))
        try:
            sock.sendall(data)
            found = b""
            while part := sock.recv(65536):
                found += part
        except TimeoutError:
            return None
        except ConnectionError:
            pass
        return found


def test_streams_errors_and_the_routes_of_no_protocol():
    async def test():
        async with site() as here, here.client() as client:
            async with client.stream("POST", "/text", json={"prompt": [SAY, 3, 7], "max_tokens": 3}) as reply:
                assert reply.status_code == 200 and reply.headers["x-request-id"] == reply.headers["request-id"]
                assert "".join([part async for part in reply.aiter_text()]) == "<7><100><101>"
            assert (await client.get("/health")).json() == {"status": "ok"}
            assert (await client.get("/ready")).json() == {"status": "ready"}
            assert (await client.get("/")).json()["models"] == ["words"]
            head = await client.head("/")
            assert head.status_code == 200 and head.content == b""
            lost = await client.get("/nowhere")
            assert lost.status_code == 404 and lost.json()["error"]["request_id"] == lost.headers["x-request-id"]
            wrong = await client.get("/text")
            assert wrong.status_code == 405 and "POST" in wrong.headers["allow"] and wrong.json()["kind"] == "method"
            tokens = (await client.post("/tokenize", json={"text": "ab"})).json()
            assert tokens == {"tokens": [97, 98], "count": 2, "max_model_len": 100}
            assert (await client.post("/detokenize", json={"tokens": [97, 98]})).json() == {"text": "<97><98>"}
            for path, body, field in (
                ("/tokenize", b"{", ""),
                ("/tokenize", b"[]", ""),
                ("/tokenize", b'{"text": 1}', "text"),
                ("/tokenize", b"{}", "text"),
                ("/tokenize", b'{"text": "\xff"}', ""),
                ("/tokenize", b"[" * 100_000, ""),
                ("/detokenize", b'{"tokens": [1, "x"]}', "tokens.1"),
                ("/detokenize", b'{"tokens": [-1]}', "tokens"),
                ("/detokenize", b'{"tokens": [1000000]}', "tokens"),
            ):
                bad = await client.post(path, content=body)
                assert bad.status_code == 400 and (bad.json()["error"]["field"] or "") == field, (path, body, bad.text)
            none = await client.post("/tokenize", json={"text": "a", "model": "../words"})
            assert none.status_code == 404 and "known: words" in none.json()["error"]["message"]

    run(test)


def test_a_bug_is_told_without_its_words_and_logged_with_its_request(caplog):
    async def test():
        async with site() as here, here.client() as client:
            reply = await client.post("/text", json={"prompt": [SAY, 1], "bug": True})
            assert reply.status_code == 500 and "secret" not in reply.text
            assert reply.json()["id"] in caplog.text and "RuntimeError" in caplog.text
            assert (await client.get("/health")).status_code == 200
            assert "POST /text 500" in caplog.text and "/health" not in caplog.text

    with caplog.at_level(logging.INFO, "optiq.serve"):
        run(test)


def test_what_is_full_or_down_says_when_to_come_back():
    async def test():
        async with site(plan(rows=1, waiting=1)) as here, here.client() as client:
            body = {"prompt": [SLOW, 1000], "max_tokens": 1000}
            running = asyncio.create_task(client.post("/text", json=body))
            await until(lambda: here.metrics.registry.get_sample_value(FIRST, {"model": "words"}))
            waiting = asyncio.create_task(client.post("/text", json=body))
            await until(lambda: here.engine.running == 2)
            busy = await client.post("/text", json=body)
            assert busy.status_code == 429 and busy.headers["retry-after"] == "1" and busy.json()["kind"] == "busy"
            os.kill(here.engine.pid, signal.SIGKILL)
            await until(lambda: not here.engine.ready)
            down = await client.post("/text", json=body)
            assert down.status_code == 503 and int(down.headers["retry-after"]) >= 1 and down.json()["kind"] == "down"
            assert (await client.get("/ready")).status_code == 503 and (await client.get("/health")).status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):  # its stream had begun: it ends early, and the client can see that
                await running
            assert (await waiting).status_code == 503
            await until(lambda: here.engine.ready)
            assert (await client.post("/text", json={"prompt": [SAY, 1], "max_tokens": 1})).text == "<100>"
            text = (await client.get("/metrics")).text
            assert 'optiq_requests_total{end="unavailable",model="words"} 3.0' in text
            assert 'optiq_requests_total{end="refused_queue",model="words"} 1.0' in text
            assert 'optiq_engine_restarts_total{model="words"} 1.0' in text and 'optiq_ready{model="words"} 1.0' in text

    run(test)


@pytest.mark.slow
def test_a_lost_engine_before_the_first_token_is_a_503():
    async def test():
        async with site() as here, here.client() as client:
            for kind in (ABORT, HANG):
                reply = await client.post("/text", json={"prompt": [kind, 0]})
                assert reply.status_code == 503 and "retry-after" in reply.headers
                await until(lambda: here.engine.ready)
            failed = await client.post("/text", json={"prompt": [FAIL, 1], "max_tokens": 5})
            assert failed.text == "<100>!the parser broke!"

    run(test)


def test_hosts_and_origins():
    async def test():
        async with site(access=Access(hosts=("my.name",), origins=("https://page.example",))) as here, here.client() as client:
            for host in ("localhost", "127.0.0.1:1", f"LOCALHOST:{here.port}", "[::1]:80", "192.168.1.2", "my.name", "My.Name:8"):
                assert (await client.get("/health", headers={"host": host})).status_code == 200, host
            for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "[evil]"):
                assert (await client.get("/health", headers={"host": host})).status_code == 403, host
            origins = ("http://localhost:3000", "http://127.0.0.1", "https://page.example", f"http://my.name:{here.port}")
            for origin in origins:
                reply = await client.get("/health", headers={"origin": origin, "host": f"my.name:{here.port}"})
                assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == origin
                lost = await client.get("/nowhere", headers={"origin": origin, "host": f"my.name:{here.port}"})
                assert lost.status_code == 404 and lost.headers["access-control-allow-origin"] == origin
            for origin in ("null", "https://evil.example", "http://localhost.evil.example", "https://page.example.evil", "x"):
                reply = await client.post("/text", json={"prompt": [SAY, 1]}, headers={"origin": origin})
                assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers, origin
            assert (await client.get("/health")).headers.get("access-control-allow-origin") is None

    run(test)


def test_keys_are_asked_for_on_every_route():
    async def test():
        async with site(access=Access(key="secret")) as here, here.client() as client:
            paths = [("GET", path) for path in ("/", "/health", "/ready", "/metrics", "/nowhere", "/v1/adapters")]
            for method, path in [*paths, ("POST", "/text"), ("POST", "/tokenize"), ("DELETE", "/v1/adapters/x")]:
                for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "secre"}, {"authorization": "Basic secret"}):
                    reply = await client.request(method, path, headers=headers)
                    assert reply.status_code == 401, (method, path, headers)
            for headers in ({"authorization": "Bearer secret"}, {"authorization": "bearer  secret"}, {"x-api-key": "secret"}):
                assert (await client.get("/health", headers=headers)).status_code == 200
            preflight = {
                "origin": "http://localhost:3000",
                "access-control-request-method": "POST",
                "access-control-request-headers": "x-api-key",
            }
            reply = await client.options("/text", headers=preflight)
            assert reply.status_code == 204 and reply.headers["access-control-allow-headers"] == "x-api-key"
            assert (await client.options("/text", headers=preflight | {"origin": "https://evil.example"})).status_code == 403

    run(test)


def test_no_address_for_others_without_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.2", "my.name"):
        with pytest.raises(InputError, match="--api-key"):
            Access(host)
        assert Access(host, key="k").key == "k"
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert Access(host).key == ""
    with pytest.raises(InputError, match="white space"):
        Access(key="a b")


def test_bodies_have_a_size_and_a_time():
    async def test():
        async with site(limits=Limits(body_bytes=1000, body_s=0.3)) as here, here.client() as client:
            body = b'{"text": "' + b"a" * 2000 + b'"}'

            async def chunks():
                for _ in range(20):
                    yield body[:200]

            for content in (body, chunks()):
                reply = await client.post("/text", content=content)
                assert reply.status_code == 413 and "at most 1000" in reply.json()["text_error"]
            head = b"POST /text HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\nconnection: close\r\n\r\n{"
            found = await asyncio.to_thread(raw, here.port, head)
            assert found.startswith(b"HTTP/1.1 408") and b'"kind":"timeout"' in found
            assert (await client.post("/tokenize", json={"text": "a"})).status_code == 200

    run(test)


def test_heads_have_a_size_and_a_time():
    async def test():
        async with site(limits=Limits(header_s=0.3)) as here, here.client() as client:
            asked = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
            for data in (b"", b"GET", asked, asked + b"\r\n" + asked):  # the last one: the second request on one connection
                found = await asyncio.to_thread(raw, here.port, data)
                assert found is not None and (b"200 OK" in found) == (data.count(b"GET") == 2)
            long = b"".join(b"x-%d: %s\r\n" % (n, b"a" * 1000) for n in range(HEAD_BYTES // 1000 + 2))
            assert (await asyncio.to_thread(raw, here.port, asked + long)).startswith(b"HTTP/1.1 400")
            for broken in (b"\x16\x03\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"POST /text HTTP/1.1\r\ncontent-length: x\r\n\r\n"):
                assert (await asyncio.to_thread(raw, here.port, broken)).startswith(b"HTTP/1.1 400")
            assert (await client.get("/health")).status_code == 200

    run(test)


@pytest.mark.parametrize("stream", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_client_that_leaves_cancels_its_request(stream):
    async def test():
        async with site(plan(rows=1, waiting=2)) as here, here.client() as client:
            body = {"prompt": [SLOW, 10**6], "max_tokens": 10**6, "stream": stream}
            running = asyncio.create_task(client.post("/text", json=body))
            await until(lambda: here.metrics.registry.get_sample_value(FIRST, {"model": "words"}))
            waiting = asyncio.create_task(client.post("/text", json=body))
            while (await here.engine.load()).waiting != 1:
                await asyncio.sleep(0.01)
            for task, left in ((waiting, 1), (running, 0)):
                task.cancel()
                await until(lambda left=left: here.engine.running == left, 2)
            load = await here.engine.load()
            assert (load.waiting, load.decoding) == (0, 0)
            assert (await client.post("/text", json={"prompt": [SAY, 1], "max_tokens": 1})).text == "<100>"

    run(test)


@pytest.mark.slow
def test_a_client_that_does_not_read_is_dropped():
    async def test():
        async with site(limits=Limits(write_s=0.3)) as here:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", here.port))
            body = b'{"prompt": [%d, 100000], "max_tokens": 100000, "repeat": 20000}' % SAY
            sock.sendall(b"POST /text HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            await until(lambda: here.engine.running == 1)
            await until(lambda: here.engine.running == 0)
            assert not here.server.server_state.connections
            sock.close()

    run(test)


def test_the_end_drains_and_a_second_signal_does_not():
    async def test():
        async with site() as here, here.client() as client:
            task = asyncio.create_task(client.post("/text", json={"prompt": [SLOW, 20], "max_tokens": 20}))
            await until(lambda: here.engine.running == 1)
            here.server.hear(signal.SIGTERM)
            await here.done
            assert (await task).text.count("<") == 20 and here.server.heard == 0
            with pytest.raises(httpx.ConnectError):
                await client.get("/health")
        async with site() as here, here.client() as client:
            task = asyncio.create_task(client.post("/text", json={"prompt": [SLOW, 10**6], "max_tokens": 10**6}))
            await until(lambda: here.engine.running == 1)
            for _ in range(2):
                here.server.hear(signal.SIGINT)
            await asyncio.wait_for(here.done, 2)
            assert here.server.heard == signal.SIGINT
            task.cancel()

    run(test)


@pytest.mark.slow
def test_what_does_not_end_in_time_is_told_so():
    async def test():
        async with site(plan(rows=1), drain_s=0.3) as here, here.client() as client:
            endless = {"prompt": [SLOW, 10**6], "max_tokens": 10**6}
            running = asyncio.create_task(client.post("/text", json=endless))
            await until(lambda: here.metrics.registry.get_sample_value(FIRST, {"model": "words"}))
            waiting = asyncio.create_task(client.post("/text", json=endless))
            await until(lambda: here.engine.running == 2)
            here.server.hear(signal.SIGTERM)
            await asyncio.wait_for(here.done, 3)
            assert (await waiting).status_code == 503 and here.server.heard == 0
            with pytest.raises(httpx.RemoteProtocolError):
                await running

    run(test)


def test_adapters_are_named_never_pathed(tmp_path):
    for name in ("one", "two", ".hidden"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    places = Places({"given": str(tmp_path / "all" / "one")}, tmp_path / "all")

    async def test():
        async with site(places=places) as here, here.client() as client:
            assert (await client.get("/v1/adapters")).json() == {"mounted": [], "available": ["given", "one", "two"]}
            for name in ("..", "../all/one", "/etc", str(tmp_path / "all" / "one"), ".hidden", "", "one/", "one\x00", "three"):
                reply = await client.post("/v1/adapters", json={"name": name})
                assert reply.status_code == 404, name
            for name in ("one", "given"):
                assert (await client.post("/v1/adapters", json={"name": name})).status_code == 200
            assert (await client.post("/v1/adapters", json={"name": "one"})).status_code == 400
            assert (await client.get("/")).json()["models"] == ["words", "words:one", "words:given"]
            asked = {"prompt": [SAY, 1], "max_tokens": 1}
            for model, adapter in (("words:one", None), ("one", None), (None, "one"), ("words", "one"), ("words", None)):
                reply = await client.post("/text", json=asked | {"model": model, "adapter": adapter})
                assert reply.status_code == 200, (model, adapter)
            for model, adapter in (("words:two", None), ("two", None), ("other:one", None), ("words", "two"), (":one:", None)):
                reply = await client.post("/text", json=asked | {"model": model, "adapter": adapter})
                assert reply.status_code == 404, (model, adapter)
            assert (await client.delete("/v1/adapters/one")).json()["mounted"] == ["given"]
            for name in ("one", "..%2fone", "%2e%2e"):
                assert (await client.delete(f"/v1/adapters/{name}")).status_code == 404

    run(test)


def test_addresses_that_cannot_be_had():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(InputError, match="another --port"):
            bind("127.0.0.1", taken.getsockname()[1])
    for host, port in (("no.such.host.invalid", 1), ("127.0.0.1", 99999), ("127.0.0.1", -1)):
        with pytest.raises(InputError):
            bind(host, port)
