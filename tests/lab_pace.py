"""How fast the workbench's pages are, as a browser sees it; tests bound what `benchmarks/lab.py` reports."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lab_process import end_lab, start_lab
from optiq.lab.chat.store import Chats
from optiq.lab.database import Database
from optiq.lab.place import Place
from optiq.lab.quantizing import Study
from optiq.plan import table
from optiq.plan.types import Item, Option

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TURNS = 2000
BITS, LAYERS, ROLES = (2, 3, 4, 6, 8), 24, ("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj")
FRAMES = """() => { const seen = window.frames_seen = []; let last = performance.now(); window.frames_on = true;
  const next = (now) => { seen.push(now - last); last = now; if (window.frames_on) requestAnimationFrame(next); };
  requestAnimationFrame(next); }"""
# From the browser's own event to the figure that the server changed: no part of the way is left out.
ANSWER = """(value) => new Promise((done) => {
  const field = document.querySelector("input[type=range]"), figures = document.querySelector(".figures");
  const begun = performance.now();
  new MutationObserver((_, seer) => { seer.disconnect(); done(performance.now() - begun); })
    .observe(figures, { subtree: true, childList: true, characterData: true });
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(field, value);
  field.dispatchEvent(new Event("input", { bubbles: true }));
})"""


def first_page_s(browser: Browser) -> float:
    """Seconds from the command `optiq lab` on a new directory to the first page's heading in the browser."""
    with tempfile.TemporaryDirectory() as folder:
        page = browser.new_page()
        begun = time.perf_counter()
        lab = start_lab(Path(folder) / "data")
        page.goto(lab.url, wait_until="commit")
        page.wait_for_selector("h1")
        seconds = time.perf_counter() - begun
        page.close()
        end_lab(lab)
    return seconds


def plant_curve(data: Path, roles: Sequence[str] = ROLES) -> str:
    """Write the table and the curve of a model into a workbench's directory; the name of that model."""
    study = Study.of(Place.open(data), "owner/model")
    study.folder.mkdir(parents=True)
    options = tuple(Option(bits, 64, 128 * bits) for bits in BITS)
    items = [
        Item(f"model.layers.{layer}.{role}", "linear", (32, 32), options, tuple(4.0**-bits * (1 + layer) for bits in BITS))
        for layer in range(LAYERS)
        for role in roles
    ]
    table.save(study.table, items, {"metric": "kl_nats_per_token"})
    points = [{"bpw": 2.5 + 6.5 * n / 63, "bytes": 10**6 * (n + 20), "predicted_kl": 0.5 * 0.9**n} for n in range(64)]
    study.curve.write_text(json.dumps({"schema": 1, "points": points}))
    return study.model


def slider_ms(page: Page, moves: int = 20) -> list[float]:
    """Milliseconds from each move of the budget slider to the figures that answer it; the page is Quantize with a curve."""
    page.locator("input[type=range]").wait_for()
    low, high = (float(page.locator("input[type=range]").get_attribute(name) or 0) for name in ("min", "max"))
    found = []
    for n in range(moves):
        found.append(float(page.evaluate(ANSWER, f"{low + (high - low) * (7 * n % moves + 0.5) / moves:.2f}")))
        page.wait_for_timeout(60)  # beyond the throttle of the moves
    return found


def frames_ms(page: Page, act: Callable[[], None]) -> list[float]:
    """Milliseconds between the frames that the browser draws while something is done."""
    page.evaluate(FRAMES)
    act()
    page.evaluate("window.frames_on = false")
    return [float(one) for one in page.evaluate("window.frames_seen")][1:]


def fill_chat(lab_data: Path, turns: int) -> int:
    """Keep a chat of so many turns in a directory that no workbench has open; its id."""
    database = Database(Place.open(lab_data).database)
    chats = Chats(database)
    chat = chats.add({})
    for n in range(turns):
        text = f"Turn {n}. " + "It says something of an ordinary length, and then a little more. " * (1 + n % 5)
        code = "\n```python\nprint('a line of code')\n```\n" if n % 10 == 1 else ""
        chats.say(chat.id, "assistant" if n % 2 else "user", text + code)
    database.close()
    return chat.id


def open_chat(page: Page, address: str, turns: int) -> float:
    """Seconds from asking for a chat to all its turns being there."""
    begun = time.perf_counter()
    page.goto(address)
    page.wait_for_function(f"document.querySelectorAll('.turn').length === {turns}")
    return time.perf_counter() - begun


def scroll(page: Page, steps: int = 60) -> None:
    """Turn the wheel over the whole page, upwards."""
    page.mouse.move(700, 400)
    for _ in range(steps):
        page.mouse.wheel(0, -3000)
        page.wait_for_timeout(16)


def say(page: Page, text: str) -> None:
    """Send a question and wait for the end of its reply."""
    composer = page.locator(".composer")  # a search by role in the whole page names its 4,000 buttons in one frame of 2 s
    composer.locator("textarea").fill(text)
    page.keyboard.press("Enter")
    composer.get_by_role("button", name="Stop").wait_for()
    composer.get_by_role("button", name="Send").wait_for()


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th hundredth and worst."""
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p95": ordered[int(0.95 * (len(ordered) - 1))],
        "worst": ordered[-1],
        "count": float(len(ordered)),
    }
