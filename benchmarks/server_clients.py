"""A server in a process of its own, and clients of it that cost little: raw HTTP over asyncio. Part of `server.py`.

In: words of the command line, prompts as token ids. Out: replies, and how each of them ended.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

READY_S = 60.0


@dataclass(frozen=True)
class Reply:
    """How a request ended.

    Args:
        end: "done"; "refused" with a status; "told" of an error in the stream; "cut" without a word; "hung" beyond the limit.
        text: that came.
        tokens: that the usage tells.
        seconds: from the connection to the end.
    """

    end: str
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    port: int
    child: subprocess.Popen[str]

    @property
    def engine(self) -> int | None:
        """The process id of its engine now; None while there is none."""
        pid = self.child.pid
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(words[-1]) if words else None

    def resident(self) -> int:
        """Bytes of server and engine in memory."""
        total = 0
        for pid in filter(None, (self.child.pid, self.engine)):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
        return total


@contextmanager
def server(model: Path, *words: object) -> Iterator[Running]:
    """A server on a free port; its log is below `build/server`."""
    log = harness.BUILD / "server" / f"{model.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = harness.command("serve", model, "--port", 0, "--json", "--events", "plain", *words)
    with log.open("w") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=harness.environment())
    try:
        assert child.stdout is not None
        text = ""
        for line in child.stdout:
            text += line
            if line == "}\n":
                break
        told = json.loads(text)
        if "url" not in told:
            raise SystemExit(f"the server did not start: {text}; end of {log}:\n{log.read_text()[-2000:]}")
        yield Running(int(told["url"].rpartition(":")[2]), child)
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            print(f"the server did not end by itself; see {log}", file=sys.stderr)


async def complete(port: int, prompt: Sequence[int], most: int, limit_s: float = 600.0) -> Reply:
    """One streamed completion, greedy."""
    body = {
        "prompt": list(prompt),
        "max_tokens": most,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    data = b""
    try:
        async with asyncio.timeout(limit_s):
            data = await _exchange(port, "POST", "/v1/completions", json.dumps(body).encode())
    except TimeoutError:
        return Reply("hung", seconds=time.perf_counter() - start)
    except OSError:
        pass  # what came before the connection was lost counts
    return _read(data, time.perf_counter() - start)


async def is_ready(port: int) -> bool:
    """Whether the server says that it is ready."""
    return (await _exchange(port, "GET", "/ready", b"")).startswith(b"HTTP/1.1 200")


async def until_ready(port: int) -> float:
    """Seconds until it says so."""
    start = time.perf_counter()
    while not await is_ready(port):
        if time.perf_counter() - start > READY_S:
            raise SystemExit(f"the server was not ready after {READY_S:g} s")
        await asyncio.sleep(0.02)
    return time.perf_counter() - start


async def _exchange(port: int, method: str, path: str, body: bytes) -> bytes:
    """All bytes that the server sends until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        parts = []
        while part := await reader.read(1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        writer.close()


def _read(data: bytes, seconds: float) -> Reply:
    """A reply from the bytes of a connection; chunks of the transfer begin where events do."""
    if not data.startswith(b"HTTP/1.1 200"):
        return Reply("refused" if data else "cut", data[:300].decode(errors="replace"), seconds=seconds)
    text, tokens, end = "", 0, "cut"
    for line in data.split(b"\n"):
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            end = "done" if end == "cut" else end
            break
        event: dict[str, Any] = json.loads(line[6:])
        if "error" in event:
            end = "told"
            continue
        text += "".join(choice["text"] for choice in event.get("choices", ()))
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return Reply(end, text, tokens, seconds)
