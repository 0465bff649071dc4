"""A workbench as a user has it, a process of its own, and a browser that counts what leaves the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from lab_process import CHROMIUM, CHROMIUM_FLAGS, Lab, end_lab, start_lab
from lab_speaker import spoken

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@dataclass
class Visit:
    """A page in the browser, and what happened in it."""

    page: Page
    outside: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Lab]:
    """One workbench for all tests that do not kill it, with the embedded model in its list."""
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    found = start_lab(tmp_path_factory.mktemp("lab") / "data", str(tiny_model.parent))
    yield found
    assert end_lab(found) == 0


@pytest.fixture
def talking_lab(tmp_path: Path) -> Iterator[Lab]:
    """A workbench of its own, with a stand-in for a server that says and runs what it is told."""
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    with spoken(tmp_path / "data"):
        found = start_lab(tmp_path / "data")
        yield found
        assert end_lab(found) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; for one module, because other tests cannot run an event loop while Playwright's is there."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
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
