"""A workbench as a user has it, a process of its own; tests and `benchmarks/lab.py` start it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
CHROMIUM_FLAGS = ("--no-sandbox", "--disable-gpu")
START_S = 120


@dataclass
class Lab:
    """A running workbench; ``url`` carries the token."""

    data: Path
    process: subprocess.Popen[str]
    url: str

    @property
    def base(self) -> str:
        """The address without path and token."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


def start_lab(data: Path, *words: str) -> Lab:
    """Start a workbench and wait for its address."""
    command = [sys.executable, "-m", "optiq.cli", "lab", *words, "--data", str(data), "--no-browser", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    log = (data.parent / f"{data.name}.log").open("w")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=data.parent)
    assert process.stdout is not None
    text = process.stdout.readline()
    assert "http://" in text, (data.parent / f"{data.name}.log").read_text()
    return Lab(data, process, next(word for word in text.split() if word.startswith("http://")))


def end_lab(lab: Lab) -> int:
    """End it as Ctrl-C does; its exit code."""
    lab.process.send_signal(signal.SIGTERM)
    return lab.process.wait(START_S)


def until(true: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Wait for something outside of the browser."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
