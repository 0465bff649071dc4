"""The whole story in one browser: a model is quantized at two budgets and served; nothing leaves the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab_process import Lab, end_lab, start_lab

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from conftest import Visit

pytestmark = pytest.mark.slow
LIMIT_MS = 900_000  # for one job on a busy machine


@pytest.fixture
def story_lab(tmp_path: Path, tiny_model: Path) -> Iterator[Lab]:
    """A workbench of its own, as it keeps what the story makes."""
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    lab = start_lab(tmp_path / "data", str(tiny_model.parent))
    yield lab
    assert end_lab(lab) == 0


def _measure(page: Page) -> None:
    page.get_by_text("How it is measured and coded").click()
    page.get_by_label("Widths to choose from").fill("4,8")
    page.get_by_label("Calibration rows per domain").fill("2")
    page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_role("slider").wait_for(timeout=LIMIT_MS)


def _quantize(page: Page, bpw: float, rows: int) -> None:
    """Move the slider, start, and wait for the row of the result."""
    page.get_by_role("slider").fill(f"{bpw}")
    page.locator("figure.command", has_text=f"--target-bpw {bpw:.3f}").wait_for()
    page.get_by_role("button", name="Quantize", exact=True).click()
    results = page.get_by_role("region", name="Results").locator("tbody tr")
    results.nth(rows - 1).wait_for(timeout=LIMIT_MS)
    told = results.first.inner_text()
    assert f"tiny-qwen3.5-{bpw:.2f}bpw" in told and f"{bpw:.3f}" in told, told


def _serve(page: Page, name: str) -> None:
    """From the result to the running server."""
    page.get_by_label(f"Serve {name}").click()
    page.get_by_label("Port").fill("0")
    page.locator("figure.command", has_text="--port 0").wait_for()
    page.get_by_role("button", name="Start").click()
    page.get_by_role("link", name="Open the chat").wait_for(timeout=LIMIT_MS)


def _chat(page: Page, base: str) -> None:
    """Ask, write the reply again, edit the question, keep to a schema, take a file along, export."""
    page.goto(f"{base}/chat")
    page.get_by_text("tiny-qwen3.5-6.00bpw at").wait_for()
    page.get_by_text("Settings of this chat").click()
    page.get_by_label("Max tokens").fill("24")
    page.get_by_label("Message").fill("Write two sentences about the sea.")
    page.keyboard.press("Enter")
    page.locator(".turn", has_text="24 tokens · ").wait_for(timeout=LIMIT_MS)
    page.get_by_role("button", name="Regenerate").click()
    page.locator(".turn", has_text="prompt tokens from the cache").wait_for(timeout=LIMIT_MS)
    page.get_by_role("button", name="Send").wait_for()
    page.get_by_role("button", name="Edit").click()
    page.get_by_text("An earlier question is edited").wait_for()
    page.get_by_label("Message").fill("Give me a number.")
    page.locator("input[type=file]").set_input_files({"name": "n.txt", "mimeType": "text/plain", "buffer": b"seven"})
    page.get_by_role("button", name="Remove n.txt").wait_for()
    page.get_by_label("JSON schema").fill('{"enum": ["seven"]}')
    page.get_by_label("Thinking", exact=True).click()
    page.get_by_role("option", name="off").click()
    page.get_by_role("button", name="Send").click()
    page.locator(".turn-other .turn-text", has_text='"seven"').wait_for(timeout=LIMIT_MS)
    assert page.locator(".turn").count() == 2 and "n.txt" in page.locator(".turn").first.inner_text()
    page.get_by_role("button", name="Send").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as Markdown").click()
    assert '"seven"' in Path(download.value.path()).read_text()


def test_from_a_checkpoint_to_a_conversation(story_lab: Lab, visit: Callable[..., Visit], tiny_model: Path) -> None:
    seen = visit(story_lab, f"/quantize?model={tiny_model}")
    _measure(seen.page)
    _quantize(seen.page, 5.0, 1)
    _quantize(seen.page, 6.0, 2)
    _serve(seen.page, str(story_lab.data / "models" / "tiny-qwen3.5-6.00bpw"))
    _chat(seen.page, story_lab.base)
    assert seen.outside == [] and seen.problems == []
