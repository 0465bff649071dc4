"""Make the pictures of the workbench in docs/pictures: each screen, light and dark, on an example that needs no model's work.

    python scripts/screenshots.py [--only Chat,Quantize]

Needs the `dev` extra, a Chromium and Pillow. The workbench runs on a directory of its own that holds the embedded model,
a measured curve, a chat and a server's stand-in. Pictures are reduced to a palette: at most 100 kB each.
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
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from lab_pace import plant_curve  # noqa: E402
from lab_process import CHROMIUM, CHROMIUM_FLAGS, Lab, end_lab, start_lab  # noqa: E402
from lab_speaker import spoken  # noqa: E402
from optiq.lab.chat.store import Chats  # noqa: E402
from optiq.lab.database import Database  # noqa: E402
from optiq.lab.pages.navigation import SCREENS, Screen  # noqa: E402
from optiq.lab.place import slug  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
LARGEST_BYTES, COLOURS = 100_000, 64
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


def fill(data: Path) -> str:
    """Put the example into a workbench's directory; the model of its curve."""
    model = plant_curve(data)
    database = Database(data / "lab.sqlite")
    chats = Chats(database)
    chat = chats.add({})
    chats.say(chat.id, "user", ASKED)
    chats.say(chat.id, "assistant", SAID, "The question is about sensitivity.", FACTS)
    database.close()
    return model


def picture(browser: Browser, lab: Lab, screen: Screen, scheme: str, model: str) -> bytes:
    """One screen as a PNG with a palette."""
    context = browser.new_context(viewport=SIZE, color_scheme=scheme)
    page = context.new_page()
    page.goto(lab.url)
    page.goto(lab.base + screen.path + (f"?model={model}" if screen.title == "Quantize" else ""))
    page.wait_for_selector("h1")
    page.wait_for_timeout(4000)  # lists and pictures come after the page
    if screen.title == "Quantize":
        page.get_by_role("slider").wait_for()
        page.get_by_role("heading", name="Sensitivity").scroll_into_view_if_needed()
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
        shutil.copytree(ROOT / "examples" / "tiny-qwen3.5", folder / "models" / "tiny-qwen3.5")
        data = folder / "lab"
        model = fill(data)
        with spoken(data):
            lab = start_lab(data, str(folder / "models"))
            browser = play.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
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
