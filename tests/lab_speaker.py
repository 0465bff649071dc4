"""A stand-in for `optiq serve` that says what it is told, as slowly as it is told; a workbench finds it as a job that runs.

`python tests/lab_speaker.py ADAPTER …` prints its port. The reply to a question is the question itself; ``slowly N:`` in front
of it makes N pieces of it, one each 20 ms, ``think:`` makes it reasoning, and ``run:`` a program that prints itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECE_S = 0.02
PIECE = "word after word, "
MODEL = "speaker"


class Speaker(BaseHTTPRequestHandler):
    """The routes that the workbench asks."""

    def do_GET(self) -> None:
        """Say what there is."""
        if self.path == "/v1/models":
            self._whole({"data": [{"id": MODEL, "family": "", "settings": {}}]})
        elif self.path == "/v1/adapters":
            self._whole({"mounted": sys.argv[1:], "available": []})
        else:
            self._whole({})

    def do_POST(self) -> None:
        """Reply to the last question."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = str(asked["messages"][-1]["content"])
        kind = "content"
        if text.startswith("think:"):
            kind, text = "reasoning_content", text[6:]
        pieces = [text[n : n + 4000] for n in range(0, len(text), 4000)]
        if text.startswith("slowly "):
            pieces = [PIECE] * int(text.split(":")[0].split()[1])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        if text.startswith("run:"):
            self._event({"choices": [{"delta": {"tool_runs": [ran(text[4:])]}, "finish_reason": None}]})
        for piece in pieces:
            self._event({"choices": [{"delta": {kind: piece}, "finish_reason": None}]})
            if text.startswith("slowly "):
                time.sleep(PIECE_S)
        usage = {"prompt_tokens": 1, "completion_tokens": len(pieces), "prompt_tokens_details": {"cached_tokens": 0}}
        self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": usage, "timings": {"predicted_per_second": 12.5}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def _whole(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


def ran(text: str) -> dict[str, Any]:
    """A run as `optiq serve` tells it, of a program that prints its own text everywhere."""
    told = {"stdout": text, "stderr": text, "exit_code": 1, "stopped": None, "seconds": 0.25, "tier": "bubblewrap"}
    return {"id": "call_1", "type": "python", "code": text, **told}


@contextmanager
def spoken(data: Path, adapters: Sequence[str] = ("sql",)) -> Iterator[None]:
    """A speaker runs, and the workbench whose directory is ``data`` will take it for a server that it had started."""
    child = subprocess.Popen([sys.executable, __file__, *adapters], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert child.stdout is not None
        announce(data, child.pid, f"http://127.0.0.1:{int(child.stdout.readline())}", MODEL)
        yield
    finally:
        child.kill()
        child.wait()


def announce(data: Path, pid: int, url: str, model: str) -> None:
    """Write a server down as a running job of a workbench that does not run; ``pid`` leads a session of its own."""
    from optiq.lab.database import Database
    from optiq.lab.jobs import process
    from optiq.lab.jobs.store import Store

    (data / "jobs").mkdir(parents=True, exist_ok=True)
    database = Database(data / "lab.sqlite")
    store = Store(database, data / "jobs")
    job = store.add(f"Serve {model}", ["serve", model, "--tools", "python"], str(data), {})
    store.begun(job.id, pid, process.born(pid))
    database.close()
    job.events.write_text(json.dumps({"type": "result", "data": {"url": url, "model": model}}) + "\n")


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Speaker)
    print(server.server_address[1], flush=True)
    server.serve_forever()
