"""Hostile texts through everything that a page shows: they stay texts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_hostile import HOSTILE, check
from lab_pace import plant_curve
from lab_process import Lab, end_lab, start_lab
from lab_speaker import spoken
from optiq.lab.chat.store import Chats
from optiq.lab.database import Database
from optiq.lab.jobs.job import State
from optiq.lab.jobs.store import Store
from optiq.lab.text import command_text, line, plain

if TYPE_CHECKING:
    from conftest import Visit

BAD = re.compile("[\ud800-\udfff\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f-\x9f]")


def test_there_are_twenty_of_them() -> None:
    assert len(set(HOSTILE)) == 20


@given(st.lists(st.sampled_from(HOSTILE) | st.text(alphabet=st.characters(), max_size=20), max_size=6).map(" ".join))
def test_nothing_unreadable_passes_the_one_way_to_a_page(text: str) -> None:
    for shown in (plain(text), line(text), command_text(["convert", text]), plain(text.encode("utf-8", "surrogatepass"))):
        assert BAD.search(shown) is None and json.loads(json.dumps(shown, ensure_ascii=False).encode()) == shown
    assert len(line(text)) < 400 and "\n" not in line(text)


@pytest.fixture(scope="module")
def hostile_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A workbench whose models, adapters, jobs and chats are called as they would have it."""
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    root = tmp_path_factory.mktemp("hostile")
    data, models = root / "data", root / "models"
    for text in HOSTILE:
        name = os.fsencode(text.replace("/", "|").replace("\0", "").encode("utf-8", "replace")[:100]) or b"none"
        _folder(os.fsencode(models) + b"/" + name, "config.json", {"model_type": text})
        _folder(os.fsencode(data / "adapters") + b"/" + name, "adapter_config.json", {"base_model_name_or_path": text})
    _folder(os.fsencode(models) + b"/broken \xff\x80", "config.json", {"model_type": "x"})
    plant_curve(data, HOSTILE)
    with spoken(data, ["<img data-hostile src=x onerror=window.hostile=1>"]):
        _write(data)
        lab = start_lab(data, str(models))
        yield lab
        assert end_lab(lab) == 0
    assert not list(root.rglob("hostile"))  # no shell has read them


def _folder(path: bytes, file: str, content: dict[str, str]) -> None:
    os.makedirs(path, exist_ok=True)
    with open(path + b"/" + file.encode(), "w") as out:
        json.dump(content, out)


def _write(data: Path) -> None:
    """Chats and jobs that ended, with hostile texts in every field."""
    database = Database(data / "lab.sqlite")
    chats, store = Chats(database), Store(database, data / "jobs")
    for text in HOSTILE:
        chat = chats.add({"system": plain(text), "adapter": plain(text)})
        files = {"files": [{"name": text, "text": text}]}
        calls = {"calls": [{"name": text, "arguments": text}], "model": text, "problem": text}
        counts = {"tokens": 1, "tokens_per_s": 1.0, "first_s": 1.0, "cached_tokens": 0, "prompt_tokens": 1}
        chats.say(chat.id, "user", text, facts=files)
        chats.say(chat.id, "assistant", text, text, {**files, **calls, **counts})
        job = store.add(text, ["list", plain(text)], str(data), {"model": text})
        store.ended(job.id, State.FAILED, text)
        told = [{"type": "stage_start", "stage": text, "unit": text}, {"type": "advance", "stage": text, "done": 1, "note": text}]
        told += [{"type": "warning", "text": text}, {"type": "error", "kind": "input", "text": text}]
        lines = [json.dumps(event).encode() for event in told] + [text.encode("utf-8", "surrogatepass")]
        job.events.write_bytes(b"\n".join(lines) + b"\n")
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/jobs", "/server", "/quantize?model=owner/model"])
def test_names_and_logs_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit], path: str) -> None:
    seen = visit(hostile_lab, path)
    seen.page.wait_for_timeout(1500)
    for one in seen.page.locator("details").all():
        one.evaluate("element => { element.open = true }")
    seen.page.wait_for_timeout(3000)
    names = [line(text) for text in HOSTILE if len(text) < 80] if path == "/jobs" else []
    check(seen.page, names)
    assert seen.outside == [] and seen.problems == []


@pytest.mark.slow
def test_chats_and_what_a_model_says_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit]) -> None:
    seen = visit(hostile_lab, "/chat")
    seen.page.get_by_text("speaker at").wait_for()
    for entry in range(len(HOSTILE)):
        seen.page.locator(".chat-entry").nth(entry).click()
        seen.page.wait_for_timeout(150)
        check(seen.page)
    seen.page.get_by_role("button", name="New chat").click()
    for text in HOSTILE:
        said = plain(text)
        for question in (said, f"think:{said}"):
            before = seen.page.locator(".turn").count()
            seen.page.get_by_label("Message").fill(question)
            seen.page.get_by_role("button", name="Send").click()
            seen.page.wait_for_function(f"document.querySelectorAll('.turn').length === {before + 2}")
            seen.page.get_by_role("button", name="Send").wait_for()
    check(seen.page, [plain(text).replace("\r", "") for text in HOSTILE[:13]])
    assert seen.outside == [] and seen.problems == []


@pytest.mark.slow
def test_addresses_stay_texts(hostile_lab: Lab, visit: Callable[..., Visit]) -> None:
    from urllib.parse import quote

    seen = visit(hostile_lab, "/jobs")
    for text in HOSTILE:
        if len(text) < 20_000:  # a longer address is refused before any page sees it
            for path in ("/quantize", "/server"):
                seen.page.goto(f"{hostile_lab.base}{path}?model={quote(text.encode('utf-8', 'replace'))}")
                seen.page.wait_for_selector("h1")
                seen.page.wait_for_timeout(200)
                check(seen.page)
    assert seen.outside == [] and seen.problems == []
