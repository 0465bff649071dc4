"""Reports: findings in words, the page without addresses, the card's section, and a server's answers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from optiq.errors import FormatError, InputError, ResourceError
from optiq.evals import card, page
from optiq.evals import data as data_files
from optiq.evals.report import Model, Report, markdown
from optiq.evals.run import Result, Row
from optiq.evals.served import ServedGenerator
from optiq.evals.task import Answer, Call, Sample, Verdict


def _result(task: str, correct: list[bool]) -> Result:
    head = {"task": task, "options": {"count": len(correct)}, "data": [{"name": "d", "sha256": "0" * 64, "licence": "MIT"}]}
    rows = [
        Row(f"{task}/{n}", Answer(""), Verdict(right, {"part": "all"} | ({"note": "short"} if n < 3 else {})))
        for n, right in enumerate(correct)
    ]
    return Result(head, tuple(rows))


def _report() -> Report:
    far = {"kl": {"mean": 0.02, "ci95": [0.01, 0.03], "by_domain": {"code": 0.01, "prose": 0.03}}, "perplexity": 12.5}
    far["kl_long"] = {"mean": 0.05, "ci95": [0.04, 0.06]}
    worse = {"a": _result("a", [False] * 20 + [True] * 20), "b": _result("b", [True, False] * 10)}
    base = {"a": _result("a", [True] * 40), "b": _result("b", [True, True] + [True, False] * 9)}
    return Report((Model("ours <4>", worse, 5_000_000, 4.5, far), Model("base", base, 20_000_000)), ("a", "b", "c"))


def test_findings_stand_in_the_text_and_in_the_data() -> None:
    text, data = markdown(_report()), _report().as_json()
    assert "| a | 40 | 50.0 (35.2 to 64.8) | 100.0" in text and ": worse |" in text and ": no difference shown |" in text
    assert "capability (mean of 2 of 3)" in text and re.search(r"\| size \|  \| 5[.0]* MB \| 20[.0]* MB \|", text)
    assert (
        "| 0.0500 (0.0400 to 0.0600) | - |" in text
        and "0.0200 (0.0100 to 0.0300)" in text
        and "a, ours <4>: 0 gained; 20 lost (a/0, a/1," in text
    )
    assert data["models"][0]["tasks"]["a"]["notes"] == {"short": 3} and "; 3 samples: short" in text
    assert data["missing_tasks"] == ["c"] and data["baseline"] == "base"
    assert data["paired"]["ours <4>"]["a"]["finding"] == "worse"
    assert data["paired"]["ours <4>"]["b"]["finding"] == "no difference shown"
    json.dumps(data)


def test_the_page_stands_alone_and_has_three_pictures() -> None:
    text = page.page(_report(), "ours <4> & base")
    assert text.count("<svg") == 3 and "ours &lt;4&gt; &amp; base" in text and "ours <4>" not in text
    assert not re.search(r"(?:src|href)=|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    alone = Report(_report().models[1:], ("a", "b"))
    assert page.page(alone, "t").count("<svg") == 1 and alone.as_json().get("paired") is None


def test_the_card_keeps_the_rest_and_replaces_its_section(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    with pytest.raises(InputError, match=r"README.md does not exist; --card writes"):
        card.write(tmp_path, _report())
    readme.write_text("# Model\n\nText.\n")
    card.write(tmp_path, _report())
    first = readme.read_text()
    assert first.startswith("# Model\n\nText.\n\n" + card.BEGIN) and first.count("## Evaluation") == 1
    readme.write_text(first + "After.\n")
    card.write(tmp_path, _report())
    assert readme.read_text() == first + "After.\n"
    readme.write_text(f"{card.BEGIN}\n")
    with pytest.raises(InputError, match="do not stand there once each"):
        card.write(tmp_path, _report())


class _Server(BaseHTTPRequestHandler):
    asked: list[dict[str, object]] = []

    def log_message(self, format: str, *args: object) -> None:
        return None

    def do_GET(self) -> None:
        content = b'{"question": "1?", "answer": "#### 1"}\n' if self.path.endswith("test.jsonl") else b"other"
        self._reply(200, content)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body | {"authorization": self.headers.get("Authorization")})
        if body["model"] != "m":
            return self._reply(404, b"no such model")
        call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
        message = {"content": None, "tool_calls": [call]} if "tools" in body else {"content": "said"}
        choice = {"message": message, "finish_reason": "length"}
        self._reply(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 7}}).encode())

    def _reply(self, code: int, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_server_answers_samples(url: str) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    samples = [
        Sample("s/0", 0, ({"role": "user", "content": "a"},), max_tokens=9),
        Sample("s/1", 0, ({"role": "user", "content": "b"},), tools=(tool,)),
    ]
    found = {s.id: a for s, a in ServedGenerator(f"{url}/v1", "m", key="k").answers(samples)}
    assert found["s/0"] == Answer("said", (), 7, "length") and found["s/1"] == Answer("", (Call("f", '{"a": 1}'),), 7, "length")
    asked = next(body for body in _Server.asked if body["max_tokens"] == 9)
    assert asked["temperature"] == 0 and asked["authorization"] == "Bearer k"
    with pytest.raises(ResourceError, match="s/0: .* gave no answer .no such model.; finished samples are kept"):
        list(ServedGenerator(f"{url}/v1", "x").answers(samples[:1]))
    with pytest.raises(InputError, match=r"--option mmlu\.generate=true"):
        list(ServedGenerator(url, "m").answers([Sample("c", 0, text="x", choices=("A",))]))


def test_downloads_are_pinned_by_hash(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FormatError, match=r"test\.jsonl has SHA-256 .* it is not used"):
        data_files.Data(host=url).jsonl("gsm8k/test.jsonl")
    content = b'{"question": "1?", "answer": "#### 1"}\n'
    import hashlib

    name, old = "gsm8k/test.jsonl", data_files.FILES["gsm8k/test.jsonl"]
    pinned = data_files.File(old.repository, old.commit, old.path, old.licence, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(data_files, "FILES", dict(data_files.FILES) | {name: pinned})
    first = data_files.Data(host=url)
    assert first.jsonl(name)[0]["question"] == "1?" and first.sources()[0]["pinned"] is True
    assert data_files.Data(host="http://127.0.0.1:9").jsonl(name)  # from the cache
    with pytest.raises(ResourceError, match="cannot download"):
        data_files.Data(host="http://127.0.0.1:9").jsonl("ifeval/input_data.jsonl")
    with pytest.raises(InputError, match="no such directory"):
        data_files.Data(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot read"):
        data_files.Data(tmp_path).jsonl(name)
