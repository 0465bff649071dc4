"""Who is let in, and what pages are told they may do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from optiq.lab.safety import Guard, own_hosts

TOKEN = "a-secret-of-this-test"
HOST = "127.0.0.1:7860"


async def _page(request: object) -> HTMLResponse:
    return HTMLResponse('<html><script>one()</script><script src="/x.js"></script></html>')


async def _done(request: object) -> PlainTextResponse:
    return PlainTextResponse("done")


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = Starlette(routes=[Route("/", _page), Route("/act", _done, methods=["POST"]), WebSocketRoute("/ws", _socket)])
    guard = Guard(app, own_hosts("127.0.0.1", 7860), TOKEN, 7860)
    with TestClient(guard, base_url=f"http://{HOST}", follow_redirects=False) as made:
        yield made


@pytest.fixture
def inside(client: TestClient) -> TestClient:
    assert client.get(f"/?token={TOKEN}").status_code == 303
    return client


def test_the_address_with_the_token_lets_in_and_loses_the_token(client: TestClient) -> None:
    answer = client.get(f"/?token={TOKEN}&model=a%26b")
    assert answer.status_code == 303 and answer.headers["location"] == "/?model=a%26b"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=wrong", "/?token=ä", "/elsewhere"])
def test_without_the_token_nothing_is_shown(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 403 and "`optiq lab` printed" in answer.text


def test_a_redirect_never_leaves_this_machine(client: TestClient) -> None:
    answer = client.get(f"http://{HOST}//evil.example/?token={TOKEN}")
    assert answer.headers["location"] == "/evil.example/"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1:9999", "", "127.0.0.1.evil.example:7860"])
def test_a_foreign_name_that_leads_here_is_refused(inside: TestClient, host: str) -> None:
    assert inside.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", [HOST, "localhost:7860", "[::1]:7860", "LOCALHOST:7860"])
def test_own_names_are_known(inside: TestClient, host: str) -> None:
    cookie = {"cookie": f"optiq_lab_7860={TOKEN}", "host": host}
    assert inside.get("/", headers=cookie).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8000", f"http://{HOST}.evil.example"])
def test_pages_of_other_origins_may_not_ask(inside: TestClient, origin: str) -> None:
    assert inside.get("/", headers={"origin": origin}).status_code == 403
    assert inside.post("/act", headers={"origin": origin}).status_code == 403
    with pytest.raises(WebSocketDisconnect), inside.websocket_connect(f"ws://{HOST}/ws", headers={"origin": origin}):
        pytest.fail("was let in")


def test_changes_need_an_origin(inside: TestClient) -> None:
    assert inside.post("/act").status_code == 403
    assert inside.post("/act", headers={"origin": f"http://{HOST}"}).text == "done"


def test_sockets_need_the_cookie(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"ws://{HOST}/ws"):
        pytest.fail("was let in")
    client.get(f"/?token={TOKEN}")
    with client.websocket_connect(f"ws://{HOST}/ws", headers={"origin": f"http://{HOST}"}) as socket:
        assert socket.receive_text() == "hello"


def test_scripts_run_from_here_alone(inside: TestClient) -> None:
    answers = [inside.get("/") for _ in range(2)]
    nonces = [re.search(r"'nonce-([^']+)'", answer.headers["content-security-policy"]).group(1) for answer in answers]  # type: ignore[union-attr]
    assert nonces[0] != nonces[1]
    assert answers[0].text.count(f'<script nonce="{nonces[0]}"') == 2
    policy = answers[0].headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert answers[0].headers["x-content-type-options"] == "nosniff"
