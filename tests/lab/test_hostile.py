"""Hostile texts through everything that a page shows: they stay texts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_hostile import HOSTILE, check
from lab_hostile_files import MODEL, NAMES, SAID, SHORT, plant
from lab_process import Lab, end_lab, start_lab
from lab_speaker import spoken
from optiq import files
from optiq.evals.page import page as report_page
from optiq.evals.report import Model, Report
from optiq.evals.run import Result, Row
from optiq.evals.task import Answer, Verdict
from optiq.lab.text import command_text, line, plain

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from conftest import Visit

BAD = re.compile("[\ud800-\udfff\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f-\x9f]")


def test_there_are_twenty_of_them() -> None:
    assert len(set(HOSTILE)) == 20


@given(st.lists(st.sampled_from(HOSTILE) | st.text(alphabet=st.characters(), max_size=20), max_size=6).map(" ".join))
def test_nothing_unreadable_passes_the_one_way_to_a_page(text: str) -> None:
    for shown in (plain(text), line(text), command_text(["convert", text]), plain(text.encode("utf-8", "surrogatepass"))):
        assert BAD.search(shown) is None and json.loads(json.dumps(shown, ensure_ascii=False).encode()) == shown
    assert len(line(text)) < 400 and "\n" not in line(text)


FOLDERS = [line(os.fsdecode(name), 80) for name, text in zip(NAMES, HOSTILE, strict=True) if text in SHORT]


@pytest.fixture(scope="module")
def hostile_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A workbench in which everything is called, and says, what they would have it."""
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    root = tmp_path_factory.mktemp("hostile")
    data, models = root / "data", root / "models"
    with spoken(data, [text.replace("\0", "").encode("utf-8", "replace").decode() for text in HOSTILE]):
        plant(data, models)
        lab = start_lab(data, str(models))
        yield lab
        assert end_lab(lab) == 0
    assert not list(root.rglob("hostile"))  # no shell has read them


def _unfold(page: Page, wait_ms: int = 1500) -> None:
    """Open all that is folded, also what is drawn only then."""
    for _ in range(2):
        page.wait_for_timeout(wait_ms)
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    page.wait_for_timeout(wait_ms)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/jobs", "/server", f"/quantize?model={MODEL}"])
def test_names_and_logs_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit], path: str) -> None:
    seen = visit(hostile_lab, path)
    _unfold(seen.page)
    check(seen.page, {"/": FOLDERS, "/jobs": list(map(line, SHORT)), "/server": list(map(line, SAID))}.get(path, []))
    assert seen.outside == [] and seen.problems == []


@pytest.mark.slow
def test_tensors_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit]) -> None:
    seen = visit(hostile_lab, "/")
    seen.page.get_by_role("button", name="Inspect tensors").click()
    seen.page.get_by_role("img", name="Bits of every tensor over the depth of the model").locator("svg").wait_for()
    _unfold(seen.page)
    check(seen.page, [plain(text) for text in HOSTILE])
    assert seen.outside == [] and seen.problems == []


@pytest.mark.slow
def test_the_page_that_an_evaluation_writes_keeps_texts(browser: Browser, tmp_path: Path) -> None:
    head = {"task": HOSTILE[1], "options": dict.fromkeys(HOSTILE, HOSTILE[2]), "data": []}
    rows = [Row(text, Answer(text), Verdict(bool(n % 2), {"part": text, "note": text})) for n, text in enumerate(HOSTILE)]
    far = {"kl": {"mean": 0.1, "ci95": [0.1, 0.2], "by_domain": dict.fromkeys(HOSTILE, 0.1)}, "perplexity": 2.0}
    one, other = (Model(text, {HOSTILE[1]: Result(head, tuple(rows))}, 1000, 4.0, far) for text in HOSTILE[:2])
    files.write_text(tmp_path / "report.html", report_page(Report((one, other), HOSTILE), HOSTILE[0]))
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    found = page.evaluate("() => [window.hostile ?? null, document.querySelectorAll('[data-hostile]').length]")
    assert found == [None, 0] and len(asked) == 1 and HOSTILE[0] in page.inner_text("h1")
    page.close()


@pytest.mark.slow
def test_compared_texts_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit]) -> None:
    seen = visit(hostile_lab, f"/compare?model={MODEL}&other=owner/other")
    page = seen.page
    page.get_by_role("region", name="The text, coloured by divergence").wait_for()
    assert page.locator(".side").count() == len(HOSTILE) and page.locator(".tokens .token.kl-4").count() == len(HOSTILE) - 1
    _unfold(page)
    check(page, [plain(text) for text in HOSTILE])
    for label in ("Adapter", "Key/value cache"):
        page.get_by_role("combobox", name=label).first.click()
        page.wait_for_timeout(500)
        check(page)
        page.keyboard.press("Escape")
    for text in SHORT:
        page.get_by_label("Prompt").fill(plain(text))
        page.wait_for_timeout(150)
        check(page)
    assert seen.outside == [] and seen.problems == []


@pytest.mark.slow
def test_recipes_and_damages_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit]) -> None:
    seen = visit(hostile_lab, f"/kv-cache?model={MODEL}")
    seen.page.get_by_role("region", name="Recipes").wait_for()
    _unfold(seen.page)
    check(seen.page, [line("/" + text.replace("/", "|")) for text in SHORT])
    for number in range(len(HOSTILE)):
        seen.page.goto(f"{hostile_lab.base}/kv-cache?model=odd/{number}")
        seen.page.get_by_role("alert").nth(1).wait_for()
        assert "measure again" in seen.page.inner_text("[role=alert] >> nth=0")
        check(seen.page)
    assert seen.outside == [] and seen.problems == []


@pytest.mark.slow
def test_data_and_adapters_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit], tiny_model: Path) -> None:
    seen = visit(hostile_lab, f"/fine-tune?model={tiny_model}")
    page = seen.page
    page.get_by_role("region", name="Adapters").wait_for()
    _unfold(page)
    check(page, FOLDERS + [line(text, 60) for text in SHORT if "/" not in text])
    page.get_by_label("Longest sample, tokens").fill("60000")
    for data in ("rows.jsonl", "wrong.jsonl"):
        page.get_by_role("combobox", name="Data, a file or a folder").fill(str(hostile_lab.data / "data" / data))
        page.keyboard.press("Enter")
        page.locator("figure.command code", has_text=f"check {tiny_model} --data {hostile_lab.data / 'data' / data}").wait_for()
        check(page)
        page.get_by_role("button", name="Check the data").click()
        page.locator(".sample" if data == "rows.jsonl" else ".note-error", has_text=":1").first.wait_for()
        check(page, [plain(text).replace("\u2400", "") for text in SHORT[:4]])
    for text in SHORT:
        page.get_by_label("Name of the adapter").fill(plain(text))
        page.wait_for_timeout(100)
        check(page)
    for number in range(len(HOSTILE)):
        page.get_by_role("region", name="Adapters").get_by_role("button", name="Losses of").nth(number).click()
        page.locator("[aria-label='Loss over steps'] svg").last.wait_for()
        page.get_by_role("region", name="Adapters").get_by_role("button", name="Fuse").nth(number).click()
        check(page)
    upload = {"name": "<img data-hostile src=x onerror=window.hostile=1>.jsonl", "mimeType": "text/plain", "buffer": b"{}"}
    page.locator("input[type=file]").set_input_files(upload)
    page.locator("figure.command code", has_text="img-data-hostile-src-x-onerror-window.hostile-1.jsonl").first.wait_for()
    check(page)
    assert seen.outside == [] and seen.problems == []


@pytest.mark.slow
def test_reports_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit]) -> None:
    seen = visit(hostile_lab, "/evaluate")
    page = seen.page
    page.get_by_role("region", name="Scores").wait_for()
    _unfold(page)
    check(page, [plain(text) for text in HOSTILE])
    rows = page.get_by_role("region", name="History").locator("tbody tr")
    assert rows.count() == len(HOSTILE) + 1
    for number in range(rows.count()):
        rows.nth(number).get_by_role("button", name="Open").click()
        page.wait_for_timeout(200)
        check(page)
    page.get_by_text("Ask the running server").click()
    page.get_by_role("combobox", name="Served model").click()
    page.get_by_role("option").nth(len(HOSTILE)).wait_for()
    check(page, [line(f"speaker:{text}", 80) for text in SAID])
    assert seen.outside == [] and seen.problems == []


@pytest.mark.slow
def test_chats_and_what_a_model_says_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit]) -> None:
    seen = visit(hostile_lab, "/chat")
    seen.page.get_by_text("speaker at").wait_for()
    for entry in range(len(HOSTILE)):
        seen.page.locator(".chat-entry").nth(entry).click()
        seen.page.wait_for_timeout(150)
        check(seen.page)
    for name in ("Markdown", "JSON"):
        with seen.page.expect_download():
            seen.page.get_by_role("button", name=f"Export as {name}").click()
    seen.page.get_by_role("button", name="New chat").click()
    seen.page.wait_for_function("document.querySelectorAll('.turn').length === 0")
    composer = seen.page.locator(".composer")
    for text in HOSTILE:
        said = plain(text)
        for question in (said, f"think:{said}", f"run:{said}"):
            before = seen.page.locator(".turn").count()
            composer.locator("textarea").first.fill(question)
            composer.get_by_role("button", name="Send").click()
            seen.page.wait_for_function(f"document.querySelectorAll('.turn').length === {before + 2}")
            composer.get_by_role("button", name="Send").wait_for()
    check(seen.page, [plain(text).replace("\r", "") for text in HOSTILE[:13]])
    assert seen.page.locator(".turn-card").count() == len(HOSTILE)
    assert seen.outside == [] and seen.problems == []


@pytest.mark.slow
def test_addresses_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit]) -> None:
    seen = visit(hostile_lab, "/jobs")
    texts = [quote(text.encode("utf-8", "replace")) for text in HOSTILE if len(text) < 20_000]  # no page sees a longer address
    pages = ("quantize?", "server?", "kv-cache?", "fine-tune?", "evaluate?baseline={0}&", "chat?")
    addresses = [f"{pages[n % len(pages)].format(text)}model={text}" for n, text in enumerate(texts)]
    for n in range(0, len(texts), 4):
        model, other, adapter, kv = (texts + texts)[n : n + 4]
        addresses.append(f"compare?model={model}&other={other}&adapter={adapter}&kv={kv}")
    for address in addresses:
        seen.page.goto(f"{hostile_lab.base}/{address}")
        seen.page.wait_for_selector("h1")
        seen.page.wait_for_timeout(200)
        check(seen.page)
    assert seen.outside == [] and seen.problems == []
