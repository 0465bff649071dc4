"""How fast the pages are. The bounds leave room for a busy machine; `benchmarks/lab.py` has the figures of a quiet one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from lab_pace import TURNS, fill_chat, first_page_s, frames_ms, open_chat, plant_curve, say, scroll, slider_ms
from lab_process import Lab, end_lab, start_lab
from lab_speaker import spoken

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from conftest import Visit

pytestmark = pytest.mark.slow
BUSY = 4  # how much slower a machine may be that does other things beside


@pytest.fixture(scope="module")
def full_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, int, str]]:
    """A workbench with a long chat, a server that speaks, and a measured curve: the chat's number, the model of the curve."""
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    data = tmp_path_factory.mktemp("full") / "data"
    model = plant_curve(data)
    with spoken(data):
        number = fill_chat(data, TURNS)
        lab = start_lab(data)
        yield lab, number, model
        assert end_lab(lab) == 0


def test_the_first_page_comes_at_once(browser: Browser) -> None:
    assert min(first_page_s(browser) for _ in range(3)) < 1.5 * BUSY


def test_the_slider_answers_while_it_is_moved(full_lab: tuple[Lab, int, str], visit: Callable[..., Visit]) -> None:
    lab, _, model = full_lab
    seen = visit(lab, f"/quantize?model={model}")
    answers = slider_ms(seen.page)
    assert statistics.median(answers) < 100 * BUSY
    slider = seen.page.get_by_role("slider")
    slider.focus()
    for key, figure in (("Home", "2.500"), ("ArrowRight", "2.510"), ("End", "9.000")):
        seen.page.keyboard.press(key)
        seen.page.get_by_text(figure, exact=True).wait_for()
    place = slider.bounding_box()
    assert place is not None
    seen.page.mouse.move(place["x"] + place["width"] - 10, place["y"] + place["height"] / 2)
    seen.page.mouse.down()
    seen.page.mouse.move(place["x"] + 2, place["y"] + place["height"] / 2, steps=10)
    seen.page.mouse.up()
    seen.page.wait_for_function("parseFloat(document.querySelectorAll('.figures dd')[1].textContent) < 2.6")
    assert "--target-bpw 2.5" in seen.page.inner_text("figure.command:has-text('--target-bpw')")
    assert seen.outside == [] and seen.problems == []


def test_leaving_the_models_field_keeps_the_model(full_lab: tuple[Lab, int, str], visit: Callable[..., Visit]) -> None:
    lab, _, model = full_lab
    seen = visit(lab, f"/quantize?model={model}")
    seen.page.get_by_role("slider").wait_for()
    seen.page.get_by_label("Checkpoint, its path or hub id").first.focus()
    seen.page.keyboard.press("Tab")
    seen.page.wait_for_timeout(1000)
    assert seen.page.get_by_role("slider").is_visible()


def test_a_long_chat_scrolls_and_streams(full_lab: tuple[Lab, int, str], visit: Callable[..., Visit]) -> None:
    lab, number, _ = full_lab
    seen = visit(lab, "/jobs")
    assert open_chat(seen.page, f"{lab.base}/chat?id={number}", TURNS) < 5 * BUSY
    scrolled = frames_ms(seen.page, lambda: scroll(seen.page))
    seen.page.evaluate("document.documentElement.scrollTop = document.documentElement.scrollHeight")
    written = frames_ms(seen.page, lambda: say(seen.page, "slowly 100: go on"))
    for frames in (scrolled, written):
        assert len(frames) > 20 and statistics.median(frames) < 34 * BUSY
    assert "word after word" in seen.page.locator(".turn").last.inner_text()
    assert seen.outside == [] and seen.problems == []
