"""The whole story in one browser, from a checkpoint to a paired report: each screen hands on, and nothing leaves the machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab_process import Lab, end_lab, start_lab
from lora_training import chat, write

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from conftest import Visit

pytestmark = pytest.mark.slow
LIMIT_MS = 300_000  # for one job on a busy machine
SMALL, LARGE = "tiny-qwen3.5-5.00bpw", "tiny-qwen3.5-6.00bpw"
ADAPTER = "stones"
STEPS = 20


@pytest.fixture
def story_lab(tmp_path: Path, tiny_model: Path) -> Iterator[Lab]:
    """A workbench of its own, as it keeps what the story makes."""
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    lab = start_lab(tmp_path / "data", str(tiny_model.parent))
    yield lab
    assert end_lab(lab) == 0


def measure(page: Page) -> None:
    """Once per model; afterwards there is a curve, and a slider along it."""
    page.get_by_text("How it is measured and coded").click()
    page.get_by_label("Widths to choose from").fill("4,8")
    page.get_by_label("Calibration rows per domain").fill("2")
    choose(page, "Encoder", "rtn")  # a tenth of the time of the others
    page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_role("slider").wait_for(timeout=LIMIT_MS)


def quantize(page: Page, bpw: float, rows: int) -> None:
    """Move the slider, start, and wait for the row of the result."""
    page.get_by_role("slider").fill(f"{bpw}")
    page.locator("figure.command", has_text=f"--target-bpw {bpw:.3f}").wait_for()
    page.get_by_role("button", name="Quantize", exact=True).click()
    results = page.get_by_role("region", name="Results").locator("tbody tr")
    results.nth(rows - 1).wait_for(timeout=LIMIT_MS)
    told = results.first.inner_text()
    assert f"tiny-qwen3.5-{bpw:.2f}bpw" in told and f"{bpw:.3f}" in told, told


def compare(page: Page) -> None:
    """Both beside their original on one prompt, and token by token on held-out text."""
    page.get_by_role("link", name="Compare the newest two with their original").click()
    page.get_by_label("Prompt").fill("Write two sentences about the sea.")
    page.get_by_label("Tokens at most").fill("24")
    page.locator("code", has_text="--max-tokens 24").nth(2).wait_for()
    page.get_by_role("button", name="Write", exact=True).click()
    sides = page.locator(".side")
    page.wait_for_function("document.querySelectorAll('.side .facts').length == 3", timeout=LIMIT_MS)
    assert [name in sides.nth(n).inner_text() for n, name in enumerate(("tiny-qwen3.5", LARGE, SMALL))] == [True] * 3
    same = sides.nth(0).get_by_text("the same text").count()
    assert same or page.locator(".side mark.parts").count() == 3, "it is shown where the texts part"
    page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_role("region", name="The text, coloured by divergence").wait_for(timeout=LIMIT_MS)
    rows = page.get_by_role("region", name="Models").locator("tbody tr")
    kl = [float(rows.nth(n).locator("td[data-label='KL, nats']").inner_text()) for n in (1, 2)]
    assert LARGE in rows.nth(1).inner_text() and 0 < kl[0] < kl[1], "more bits, less divergence"
    assert page.locator(".tokens .token[class*=kl-]").count() > 0
    page.locator("summary", has_text="Write two sentences about the sea.").first.wait_for()


def fine_tune(page: Page) -> None:
    """Data from a file, what the model will read of it, 20 steps, the loss, the adapter."""
    page.get_by_role("link", name=f"Fine-tune {SMALL}").click()
    rows = [chat("It is a red stone.", f"What do you see, number {n}?") for n in range(12)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add a file").click()
    chooser.value.set_files({"name": f"{ADAPTER}.jsonl", "mimeType": "application/json", "buffer": content})
    page.locator("code", has_text=f"{ADAPTER}.jsonl").first.wait_for()
    page.get_by_role("button", name="Check the data").click()
    page.locator("mark.carries", has_text="red stone").first.wait_for(timeout=LIMIT_MS)
    page.get_by_label("Steps", exact=True).fill(str(STEPS))
    page.get_by_label("Name of the adapter").fill(ADAPTER)
    page.locator("code", has_text=f"--iters {STEPS}").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    row = page.get_by_role("region", name="Adapters").locator("tbody tr", has_text=ADAPTER)
    row.wait_for(timeout=LIMIT_MS)
    assert row.locator("td[data-label=for]").inner_text() == SMALL
    assert row.locator("td[data-label=steps]").inner_text() == str(STEPS)
    page.get_by_role("button", name=f"Losses of {ADAPTER}").click()
    page.locator("[aria-label='Loss over steps'] svg").last.wait_for()


def serve(page: Page) -> None:
    """From the adapter to a server that has mounted it."""
    page.get_by_role("link", name=f"Serve {ADAPTER} with its model").click()
    page.get_by_label("Port").fill("0")
    page.locator("figure.command", has_text="--port 0").wait_for()
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Unmount").wait_for(timeout=LIMIT_MS)


def talk(page: Page) -> None:
    """With the adapter, without it, and with it again after it was unmounted."""
    page.get_by_role("button", name="Unmount").click()
    page.get_by_role("button", name="Mount", exact=True).wait_for()
    page.get_by_role("link", name="Open the chat").click()
    page.get_by_text(f"{SMALL} at").wait_for()
    page.get_by_text("Settings of this chat").click()
    page.get_by_label("Max tokens").fill("24")
    choose(page, "Adapter", ADAPTER)
    say(page, "What do you see, number 3?")
    page.locator(".turn", has_text=f"· {SMALL}:{ADAPTER}").wait_for(timeout=LIMIT_MS)
    choose(page, "Adapter", "none")
    say(page, "What do you see, number 4?")
    replies = page.locator(".turn-other")
    replies.nth(1).get_by_role("button", name="Regenerate").wait_for(timeout=LIMIT_MS)
    assert f"· {SMALL}" in replies.nth(1).inner_text() and f":{ADAPTER}" not in replies.nth(1).inner_text()


def write_again(page: Page) -> None:
    """Regenerate, edit, a file as context, a schema, the chat as a file."""
    old = page.locator(".turn").last.element_handle()
    page.get_by_role("button", name="Regenerate").last.click()
    old.wait_for_element_state("hidden")
    page.locator(".turn-other").nth(1).get_by_role("button", name="Regenerate").wait_for(timeout=LIMIT_MS)
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_text("An earlier question is edited").wait_for()
    page.get_by_label("Message").fill("Give me a number.")
    page.locator("input[type=file]").set_input_files({"name": "n.txt", "mimeType": "text/plain", "buffer": b"seven"})
    page.get_by_role("button", name="Remove n.txt").wait_for()
    page.get_by_label("JSON schema").fill('{"enum": ["seven"]}')
    choose(page, "Thinking", "off")
    page.get_by_role("button", name="Send").click()
    page.locator(".turn-other .turn-text", has_text='"seven"').wait_for(timeout=LIMIT_MS)
    assert page.locator(".turn").count() == 2 and "n.txt" in page.locator(".turn").first.inner_text()
    page.get_by_role("button", name="Send").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as Markdown").click()
    assert '"seven"' in Path(download.value.path()).read_text()


def choose(page: Page, label: str, option: str) -> None:
    """Take an option of a list."""
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def say(page: Page, text: str) -> None:
    """Ask."""
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def evaluate(page: Page, data: Path) -> None:
    """Two tasks, of which one reads a file of questions; one quantization against the other."""
    page.get_by_role("link", name=f"Evaluate {SMALL} against its original").click()
    page.get_by_role("combobox", name="Compare with").fill(LARGE)
    page.get_by_role("option", name=LARGE).click()
    page.locator("code", has_text=f"{LARGE} -o").wait_for()
    page.get_by_role("combobox", name="Tasks; all where none is chosen").click()
    for task in ("gsm8k", "hashhop"):
        page.get_by_role("option", name=task).click()
    page.keyboard.press("Escape")
    page.get_by_label("Samples per task").fill("4")
    page.get_by_label("Folder with the tasks' data").fill(str(data))
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Options of tasks").fill("gsm8k.shots=0 gsm8k.max_tokens=16 hashhop.characters=400")
    page.locator("code", has_text="hashhop.characters=400").wait_for()
    page.get_by_role("button", name="Evaluate", exact=True).click()
    page.get_by_role("heading", name=f"{SMALL} against {LARGE}").wait_for(timeout=LIMIT_MS)
    rows = page.get_by_role("region", name="Scores").locator("tbody tr")
    assert [rows.nth(n).locator("td").first.inner_text() for n in range(3)] == ["gsm8k", "hashhop", "capability"]
    for n in range(3):
        assert " to " in rows.nth(n).locator("td[data-label=difference]").inner_text()
        assert rows.nth(n).locator("td[data-label=finding]").inner_text()
    page.locator("[aria-label='Scores by task with their intervals'] svg").wait_for()


def questions(folder: Path) -> Path:
    """Local data of the task gsm8k, as its makers lay it out."""
    rows = [{"question": f"What is {n} plus 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(4)]
    write(folder / "gsm8k" / "test.jsonl", rows)
    return folder


def test_from_a_checkpoint_to_a_report(story_lab: Lab, visit: Callable[..., Visit], tiny_model: Path, tmp_path: Path) -> None:
    seen = visit(story_lab, f"/quantize?model={tiny_model}")
    page, results = seen.page, f"{story_lab.base}/quantize?model={tiny_model}"
    measure(page)
    quantize(page, 5.0, 1)
    quantize(page, 6.0, 2)
    compare(page)
    page.goto(results)
    fine_tune(page)
    serve(page)
    talk(page)
    write_again(page)
    page.goto(results)
    evaluate(page, questions(tmp_path / "questions"))
    page.goto(f"{story_lab.base}/jobs")
    page.get_by_role("heading", name="Ended").wait_for()
    assert page.locator("summary").filter(has_text="failed").count() == 0
    assert seen.outside == [] and seen.problems == []
