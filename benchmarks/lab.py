"""The workbench as a browser sees it: time to the first page, the slider's answer, a chat of 2,000 messages; and its checks.

    python benchmarks/lab.py [--only first_page,slider,chat,story,restart,hostile,accessible] [--repeats 5]

Needs the `dev` extra and a Chromium. Parts are kept below `build/lab` with their commit, so that `--only` renews one part.
The last four are the browser tests of the same names, whose failures are counted. Give the machine nothing else to do.
Out: `results/lab.json` where all parts are there; with `--dry` the rows are printed and nothing is written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import parts
from harness import Bar

sys.path.insert(0, str(harness.ROOT / "tests"))

import lab_pace as pace
from lab_process import CHROMIUM, CHROMIUM_FLAGS, end_lab, start_lab
from lab_speaker import spoken

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIRST_PAGE_S, ANSWER_MS = 1.5, 100.0
FRAME_MS = 50.0  # three frames of a screen of 60 Hz: what a hand on a wheel still takes for even
CHECKS = {
    "story": ("test_story", "from a checkpoint to a report in one browser, no request leaves the machine"),
    "restart": ("test_restart", "the workbench is killed during a job, which is there afterwards and resumes"),
    "hostile": ("test_hostile", "20 hostile texts through every text that reaches a page stay texts"),
    "accessible": ("test_accessible", "axe-core finds nothing serious or critical on any screen, light and dark"),
}


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield found
        found.close()


def first_page(settings: argparse.Namespace) -> dict[str, Any]:
    """From the command to the heading, after one run that warms the file cache."""
    with browser() as seen:
        return {"seconds": [pace.first_page_s(seen) for _ in range(settings.repeats + 1)][1:]}


def first_page_bars(part: dict[str, Any]) -> list[Bar]:
    """Its row."""
    what = f"from `optiq lab` to the first page in the browser, median of {len(part['seconds'])}"
    slowest = f"slowest {max(part['seconds']):.2f} s"
    return [Bar("8.first_page", what, statistics.median(part["seconds"]), "s", FIRST_PAGE_S, "<=", slowest)]


def slider(settings: argparse.Namespace) -> dict[str, Any]:
    """Moves of the budget slider, each to the figures that answer it."""
    with tempfile.TemporaryDirectory() as folder, browser() as seen:
        data = Path(folder) / "lab"
        model = pace.plant_curve(data)
        lab = start_lab(data)
        page = seen.new_page()
        page.goto(lab.url)
        page.goto(f"{lab.base}/quantize?model={model}")
        found = pace.slider_ms(page, 20 * settings.repeats)
        end_lab(lab)
    return {"answer_ms": pace.spread(found)}


def slider_bars(part: dict[str, Any]) -> list[Bar]:
    """Its row."""
    found = part["answer_ms"]
    what = f"budget slider moved to figures changed, 95th hundredth of {found['count']:.0f} moves"
    baseline = f"median {found['median']:.0f} ms, slowest {found['worst']:.0f} ms"
    return [Bar("8.slider", what, found["p95"], "ms", ANSWER_MS, "<=", baseline)]


def chat(settings: argparse.Namespace) -> dict[str, Any]:
    """Frames of a long chat while it is scrolled, and while a reply streams at 50 pieces a second."""
    with tempfile.TemporaryDirectory() as folder, browser() as seen:
        data = Path(folder) / "lab"
        number = pace.fill_chat(data, pace.TURNS)
        with spoken(data):
            lab = start_lab(data)
            page = seen.new_page(viewport={"width": 1280, "height": 900})
            page.goto(lab.url)
            opened = pace.open_chat(page, f"{lab.base}/chat?id={number}", pace.TURNS)
            page.get_by_text("speaker at").wait_for()
            scrolled = pace.frames_ms(page, partial(pace.scroll, page, 60 * settings.repeats))
            page.evaluate("document.documentElement.scrollTop = document.documentElement.scrollHeight")
            written = pace.frames_ms(page, lambda: pace.say(page, f"slowly {100 * settings.repeats}: go on"))
            end_lab(lab)
    return {"turns": pace.TURNS, "open_s": opened, "scroll_ms": pace.spread(scrolled), "stream_ms": pace.spread(written)}


def chat_bars(part: dict[str, Any]) -> list[Bar]:
    """Two rows."""
    rows = []
    for name, act in (("scroll", "scrolled from end to end"), ("stream", "a reply streams, 50 pieces a second")):
        found = part[f"{name}_ms"]
        what = f"chat of {part['turns']:,} messages, {act}: 95th hundredth of the times between frames"
        baseline = f"median {found['median']:.1f} ms, longest {found['worst']:.0f} ms; opens in {part['open_s']:.2f} s"
        rows.append(Bar(f"8.chat_{name}", what, found["p95"], "ms", FRAME_MS, "<=", baseline))
    return rows


def check(file: str, settings: argparse.Namespace) -> dict[str, Any]:
    """How many tests of a file there are, and how many fail; one that is skipped is not counted as passed."""
    report = harness.BUILD / "lab" / f"{file}.xml"
    words = ["-m", "pytest", f"tests/lab/{file}.py", "-m", "", f"--junitxml={report}"]
    harness.run([sys.executable, *words], report.with_suffix(".log"), check=False)
    counts = next(xml.parse(report).getroot().iter("testsuite")).attrib
    found = {name: int(counts[name]) for name in ("tests", "failures", "errors", "skipped")}
    return {"what": next(what for name, what in CHECKS.values() if name == file), **found}


def check_bars(name: str, part: dict[str, Any]) -> list[Bar]:
    """One row."""
    failed = part["failures"] + part["errors"]
    figure = None if part["skipped"] or not part["tests"] else float(failed)
    return [Bar(f"8.{name}", f"failures: {part['what']}", figure, "tests", 0, "<=", f"{part['tests']} tests")]


PARTS: dict[str, parts.Part] = {
    "first_page": (first_page, first_page_bars),
    "slider": (slider, slider_bars),
    "chat": (chat, chat_bars),
} | {name: (partial(check, file), partial(check_bars, name)) for name, (file, _) in CHECKS.items()}


def main() -> None:
    """Measure what was asked for."""
    parts.measure("lab", PARTS, parts.parser_of(__doc__, PARTS).parse_args())


if __name__ == "__main__":
    main()
