"""A workbench as a user has it, a process of its own, and a browser that counts what leaves the machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
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


@dataclass
class Visit:
    """A page in the browser, and what happened in it."""

    page: Page
    outside: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


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


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Lab]:
    """One workbench for all tests that do not kill it, with the embedded model in its list."""
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    found = start_lab(tmp_path_factory.mktemp("lab") / "data", str(tiny_model.parent))
    yield found
    assert end_lab(found) == 0


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens the workbench in a fresh context; every request to another host, error of a script and refusal is noted."""
    contexts = []

    def open_(lab: Lab, path: str = "/", width: int = 1280, scheme: str = "light") -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(60_000)
        contexts.append(context)
        made = Visit(context.new_page())
        own = urlsplit(lab.base).netloc
        made.page.on("request", lambda request: _note_outside(made, request.url, own))
        made.page.on("pageerror", lambda error: made.problems.append(str(error)))
        made.page.on("console", lambda told: made.problems.append(told.text) if told.type == "error" else None)
        made.page.goto(lab.url)
        made.page.goto(lab.base + path)
        made.page.wait_for_selector("h1")
        return made

    yield open_
    for context in contexts:
        context.close()


def _note_outside(visit: Visit, url: str, own: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("data", "blob") and parts.netloc != own:
        visit.outside.append(url)


def until(true: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Wait for something outside of the browser."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
