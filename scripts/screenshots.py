"""Make the pictures of the workbench in docs/pictures: each screen, light and dark, with what the embedded model came to.

    python scripts/screenshots.py [--only Chat,Quantize]

Needs the `dev` extra, a Chromium and Pillow; some minutes. The workbench runs on a directory of its own, where the steps of
`tests/lab/test_story.py` are gone through first, so that all numbers are measured; the chat is written by hand, and a stand-in
serves it. Pictures are reduced to a palette: at most 100 kB each.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "lab")]

import test_story as story  # noqa: E402

from lab_process import CHROMIUM, CHROMIUM_FLAGS, Lab, end_lab, start_lab  # noqa: E402
from lab_speaker import spoken  # noqa: E402
from optiq.lab.chat.store import Chats  # noqa: E402
from optiq.lab.database import Database  # noqa: E402
from optiq.lab.pages.navigation import SCREENS, Screen  # noqa: E402
from optiq.lab.place import slug  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
LARGEST_BYTES, COLOURS = 100_000, 160
SIZE = {"width": 1180, "height": 820}
ASKED = "Which tensors of a hybrid model keep more bits, and why?"
SAID = """Those whose rounding changes what the model says the most: the embedding,
the output head, and the first layers' projections.

```
optiq convert Qwen/Qwen3.5-0.8B --target-bpw 5.0
```

The measured table says it for each tensor; the budget is spent along it."""
FACTS = {
    "tokens": 71,
    "tokens_per_s": 41.3,
    "first_s": 0.21,
    "cached_tokens": 18,
    "prompt_tokens": 34,
    "finish": "stop",
    "model": "example",
}


SHOWN = {  # the part of a screen that its picture begins with, where that is not the top
    "Compare": "Divergence, token by token",
    "Quantize": "Sensitivity",
    "KV cache": "What packing costs",
    "Fine-tune": "Training",
    "Evaluate": "against",
}


def fill(data: Path) -> None:
    """Put the chat into a workbench's directory."""
    data.mkdir(parents=True)
    database = Database(data / "lab.sqlite")
    chats = Chats(database)
    chat = chats.add({})
    chats.say(chat.id, "user", ASKED)
    chats.say(chat.id, "assistant", SAID, "The question is about sensitivity.", FACTS)
    database.close()


def live(page: Page, lab: Lab, model: Path, folder: Path) -> None:
    """Go through the story up to its report."""
    results = f"{lab.base}/quantize?model={model}"
    page.goto(results)
    story.measure(page)
    story.quantize(page, 5.0, 1)
    story.quantize(page, 6.0, 2)
    story.compare(page)
    page.goto(results)
    story.fine_tune(page)
    page.goto(results)
    story.evaluate(page, story.questions(folder / "questions"))
    page.goto(f"{lab.base}/kv-cache?model={model}")
    page.get_by_text("How it is measured").click()
    for label, value in (("Rows of text", "1"), ("Tokens per row", "512")):
        page.get_by_label(label).fill(value)
    page.locator("code", has_text="512").wait_for()
    page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_role("slider").wait_for(timeout=story.LIMIT_MS)


def picture(browser: Browser, lab: Lab, screen: Screen, scheme: str, model: Path) -> bytes:
    """One screen as a PNG with a palette."""
    context = browser.new_context(viewport=SIZE, color_scheme=scheme)
    page = context.new_page()
    page.goto(lab.url)
    page.goto(lab.base + screen.path + (f"?model={model}" if screen.title in ("Quantize", "KV cache") else ""))
    page.wait_for_selector("h1")
    page.wait_for_timeout(4000)  # lists and pictures come after the page
    if part := SHOWN.get(screen.title):
        page.get_by_role("heading", name=part).first.evaluate("part => part.closest('section').scrollIntoView()")
        page.wait_for_timeout(500)
    found = io.BytesIO()
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS).save(found, "PNG", optimize=True)
    context.close()
    return found.getvalue()


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="TITLE,…", help="these screens alone")
    wanted = set(filter(None, parser.parse_args().only.split(",")))
    PICTURES.mkdir(parents=True, exist_ok=True)
    with ExitStack() as ending:
        play = ending.enter_context(sync_playwright())
        folder = Path(tempfile.gettempdir()) / "optiq"  # a name that may be seen in the pictures
        folder.mkdir()  # never one that is there already
        ending.callback(shutil.rmtree, folder)
        model, data = folder / "models" / "tiny-qwen3.5", folder / "lab"
        shutil.copytree(ROOT / "examples" / "tiny-qwen3.5", model)
        fill(data)
        with spoken(data):
            lab = start_lab(data, str(folder / "models"))
            browser = play.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
            page = browser.new_page()
            page.goto(lab.url)
            live(page, lab, model, folder)
            for screen in SCREENS:
                for scheme in ("light", "dark") if not wanted or screen.title in wanted else ():
                    content = picture(browser, lab, screen, scheme, model)
                    if len(content) > LARGEST_BYTES:
                        raise SystemExit(f"{screen.title}, {scheme}: {len(content):,} bytes, expected at most {LARGEST_BYTES:,}")
                    path = PICTURES / f"lab-{slug(screen.title).lower()}-{scheme}.png"
                    path.write_bytes(content)
                    print(f"{path.relative_to(ROOT)}: {len(content):,} bytes")
            browser.close()
            end_lab(lab)


if __name__ == "__main__":
    main()
