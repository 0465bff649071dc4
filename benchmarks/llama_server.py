"""llama.cpp's server as a side of `engine.py`: started on a free port, asked for many completions at once.

In: token ids. Out: seconds for all replies. Every reply has the length that was asked for, and nothing is kept between requests.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peer_llama

READY_S = 120


class LlamaServer:
    """One server process; a context, which ends it.

    Args:
        quantization: of the GGUF twin, one of `peer_llama.QUANTIZATIONS`.
        threads: for generation and for prompts.
        streams: requests that are answered at once.
        tokens: of prompt and reply together, per request.
    """

    def __init__(self, quantization: str, threads: int, streams: int, tokens: int) -> None:
        self.quantization = quantization
        self._log = peer_llama.WORK / f"server-{quantization}.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        words = [peer_llama.program("llama-server"), "-m", peer_llama.model(quantization), "--host", "127.0.0.1", "--port", port]
        words += ["-t", threads, "-tb", threads, "-np", streams, "-c", streams * tokens, "--cache-ram", 0, "--no-cache-prompt"]
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log)

    def __enter__(self) -> LlamaServer:
        end = time.monotonic() + READY_S
        while self._child.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=5) as reply:
                    if reply.status == 200:
                        return self
            except OSError:  # not there yet, or still loading
                time.sleep(0.2)
        self.__exit__()
        raise SystemExit(f"llama-server is not ready after {READY_S} s; end of {self._log}:\n{self._log.read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        self._child.wait()

    def run(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        """Seconds until every prompt, all sent at once, has its greedy reply of `new` tokens.

        Raises:
            SystemExit: a reply of another length.
        """
        start = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            replies = list(pool.map(lambda prompt: self._complete(prompt, new), prompts))
        seconds = time.perf_counter() - start
        for prompt, reply in zip(prompts, replies, strict=True):
            found = reply["tokens_evaluated"], reply["tokens_predicted"]
            if found != (len(prompt), new):
                raise SystemExit(f"llama-server read and wrote {found} tokens, expected {(len(prompt), new)}; see {self._log}")
        return seconds

    def _complete(self, prompt: Sequence[int], new: int) -> dict[str, Any]:
        body = {"prompt": list(prompt), "n_predict": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(
            f"{self._url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            return dict(json.load(reply))
