"""A stand-in for `optiq serve` that says what it is told, as slowly as it is told; a workbench finds it as a job that runs.

`python tests/lab_speaker.py ADAPTER …` prints its port. The reply to a question is the question itself; ``slowly N:`` in front
of it makes N pieces of it, one each 20 ms, and ``think:`` makes it reasoning.
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


@contextmanager
def spoken(data: Path, adapters: Sequence[str] = ("sql",)) -> Iterator[None]:
    """A speaker runs, and the workbench whose directory is ``data`` will take it for a server that it had started."""
    from optiq.lab.database import Database
    from optiq.lab.jobs import process
    from optiq.lab.jobs.store import Store

    child = subprocess.Popen([sys.executable, __file__, *adapters], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        (data / "jobs").mkdir(parents=True, exist_ok=True)
        database = Database(data / "lab.sqlite")
        job = Store(database, data / "jobs").add("Serve the speaker", ["serve", MODEL], str(data), {})
        Store(database, data / "jobs").begun(job.id, child.pid, process.born(child.pid))
        database.close()
        told = {"type": "result", "data": {"url": f"http://127.0.0.1:{port}", "model": MODEL}}
        job.events.write_text(json.dumps(told) + "\n")
        yield
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Speaker)
    print(server.server_address[1], flush=True)
    server.serve_forever()
