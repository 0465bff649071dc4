"""Downloads against a small stand-in for the hub on loopback, each in an interpreter of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from optiq.errors import InputError
from optiq.models import hub

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NO_NETWORK_SECONDS = 15  # a few seconds by itself; the bound leaves room for a busy machine
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "README.md": b"# small",
    "model.safetensors": bytes(range(256)) * 94_000,  # the client stores pieces of 10 MiB
    "pytorch_model.bin": b"not wanted",
    "original/consolidated.safetensors": b"not wanted either",
}


class Hub(ThreadingHTTPServer):
    """What the hub serves, and what went over the wire."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.break_after = 0
        self.break_always = False
        self.requests: list[tuple[str, str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """The few routes of the hub's interface that a download uses."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        return None

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range", "")))
        path = self.path.split("?")[0]
        if path == "/api/models":
            wanted = "search=small" in self.path and "filter=safetensors" in self.path
            counts = {"parameters": {"BF16": 3_000_000_000, "U8": 5}, "total": 3_000_000_005}
            found = [{"id": "acme/small", "downloads": 7, "safetensors": counts}, {"id": "acme/other", "downloads": 1}]
            return self._json(found if wanted else [], body)
        name = "/".join(re.sub(r"^/(api/models/)?", "", path).split("/")[:2])
        if name == "acme/gated":
            return self._refuse(403, "GatedRepo")
        if name != "acme/small":
            return self._refuse(404, "RepoNotFound")
        if path.startswith("/api/models/"):
            return self._api(path, body)
        _, _, _, _, revision, file = path.split("/", 5)
        if revision not in (COMMIT, "main"):
            return self._refuse(404, "RevisionNotFound")
        self._file(file, body)

    def _api(self, path: str, body: bool) -> None:
        revision = re.search(r"/(?:revision|tree)/([^/]+)", path)
        if revision is not None and revision[1] not in (COMMIT, "main"):
            return self._refuse(404, "RevisionNotFound")
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            return self._json(entries, body)
        siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
        self._json({"id": "acme/small", "sha": COMMIT, "siblings": siblings, "tags": []}, body)

    def _file(self, file: str, body: bool) -> None:
        data = FILES[file]
        start = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        broken = self.server.break_after
        if broken and file == "model.safetensors":
            self.server.break_after = broken if self.server.break_always else 0
            self.wfile.write(data[start : start + broken] if not (start and self.server.break_always) else b"")
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _json(self, data: object, body: bool) -> None:
        payload = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if body:
            self.wfile.write(payload)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def _optiq(home: Path, endpoint: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()},
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        **more,
    }
    command = [sys.executable, "-m", "optiq.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_local_directory_wins(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert hub.resolve(tiny_model) == tiny_model
    (tmp_path / "acme" / "small").mkdir(parents=True)
    (tmp_path / "acme" / "small" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("acme/small") == Path("acme/small")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nothing", r"no such directory: ./nothing; expected a model directory or a hub id \(owner/name\)"),
        ("nothing", "no such directory: nothing"),
        ("/a/b/c", "no such directory: /a/b/c"),
        ("", "the model's name is empty; expected a model directory"),
        ("file", "file is a file; expected a model directory"),
        ("folder", "folder is a directory without config.json"),
    ],
)
def test_a_wrong_path_is_one_clear_line(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        hub.resolve(name)


def test_pull_fetches_what_is_needed_and_list_and_rm_know_it(server: Hub, tmp_path: Path) -> None:
    done = _optiq(tmp_path, server.url, "pull", "acme/small", "--json", "--events", "jsonl")
    assert done.returncode == 0, done.stderr
    path = Path(json.loads(done.stdout)["path"])
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[0]["stage"] == "download acme/small"
    assert (events[-2]["type"], events[-2]["done"], events[-2]["unit"]) == ("stage_end", 24, "MB")

    before = len(server.requests)
    assert _optiq(tmp_path, server.url, "pull", "acme/small").returncode == 0
    assert not [request for request in server.requests[before:] if request[1].endswith("model.safetensors")]

    listed = json.loads(_optiq(tmp_path, server.url, "list", "--json").stdout)["models"]
    assert [(row["name"], row["path"]) for row in listed] == [("acme/small", str(path))]
    assert "wants a confirmation" in _optiq(tmp_path, server.url, "rm", "acme/small").stderr
    assert _optiq(tmp_path, server.url, "rm", "acme/small", "--yes").returncode == 0
    assert json.loads(_optiq(tmp_path, server.url, "list", "--json").stdout)["models"] == []


def test_the_hub_is_searched_by_a_text(server: Hub, tmp_path: Path) -> None:
    found = json.loads(_optiq(tmp_path, server.url, "models", "--search", "small", "--json").stdout)
    small, other = found["models"]
    assert (small["id"], small["size_bytes"], small["downloads"]) == ("acme/small", 6_000_000_005, 7)
    assert small["fits"] is (small["needed_bytes"] <= found["memory_bytes"]) and other["size_bytes"] is other["fits"] is None
    done = _optiq(tmp_path, server.url, "models", "--search", "nothing")
    assert done.stdout == "no model for 'nothing'\n"
    done = _optiq(tmp_path, server.url, "models", "--search", " ")
    assert done.returncode == 2 and "the text to search for is empty" in done.stderr


@pytest.mark.slow  # the hub's library tries again for 20 seconds
def test_a_search_without_a_hub_says_so(tmp_path: Path) -> None:
    done = _optiq(tmp_path, "http://127.0.0.1:9", "models", "--search", "small")
    assert done.returncode == 2 and "cannot be reached for 'small'" in done.stderr


def test_a_dropped_connection_resumes_in_the_same_run(server: Hub, tmp_path: Path) -> None:
    server.break_after = 11_000_000
    done = _optiq(tmp_path, server.url, "pull", "acme/small", "--json")
    assert done.returncode == 0, done.stderr
    assert "resume" in done.stderr and "Traceback" not in done.stderr
    path = Path(json.loads(done.stdout)["path"])
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert [wanted for _, name, wanted in server.requests if name.endswith("model.safetensors") and wanted]


def test_a_broken_download_resumes_in_the_next_run(server: Hub, tmp_path: Path) -> None:
    server.break_after, server.break_always = 11_000_000, True
    done = _optiq(tmp_path, server.url, "pull", "acme/small")
    assert done.returncode == 2
    assert re.search(r"optiq: error: the download of acme/small broke off \(\w+\); run again to resume\n$", done.stderr)
    server.break_after, server.break_always = 0, False
    before = len(server.requests)
    done = _optiq(tmp_path, server.url, "pull", "acme/small", "--json")
    assert done.returncode == 0, done.stderr
    path = Path(json.loads(done.stdout)["path"])
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    ranges = [wanted for way, name, wanted in server.requests[before:] if way == "GET" and "model.safe" in name]
    assert ranges == [f"bytes={10 * 2**20}-"]
    assert not list(tmp_path.rglob("*.optiq-partial"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["acme/none"], "no model acme/none on the hub, or it is private; check the name or log in"),
        (["acme/gated"], "acme/gated is gated: accept its terms on its page and log in"),
        (["acme/small", "--revision", "v9"], "acme/small has no revision 'v9'; name a branch, tag or commit of it"),
        (["acme/a..b"], "'acme/a..b' is neither a directory nor a valid hub id"),
    ],
)
def test_what_the_hub_refuses_is_one_line(words: list[str], message: str, server: Hub, tmp_path: Path) -> None:
    done = _optiq(tmp_path, server.url, "pull", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"optiq: error: {message}") and done.stderr.count("\n") == 1


def test_without_a_network_the_line_comes_soon(tmp_path: Path) -> None:
    start = time.monotonic()
    done = _optiq(tmp_path, "http://127.0.0.1:9", "pull", "acme/small")
    assert time.monotonic() - start < NO_NETWORK_SECONDS
    assert done.returncode == 2
    expected = "optiq: error: the hub (http://127.0.0.1:9) cannot be reached for acme/small (ConnectError); check the network"
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1
    done = _optiq(tmp_path, "http://127.0.0.1:9", "pull", "acme/small", HF_HUB_OFFLINE="1")
    assert "acme/small is not complete in the cache and HF_HUB_OFFLINE forbids a download" in done.stderr


def test_a_cached_model_serves_without_a_network(server: Hub, tmp_path: Path) -> None:
    assert _optiq(tmp_path, server.url, "pull", "acme/small").returncode == 0
    done = _optiq(tmp_path, "http://127.0.0.1:9", "pull", "acme/small")
    assert done.returncode == 0, done.stderr
    assert "the hub did not answer; using the cached copy of acme/small" in done.stderr
