"""Programs that replies ran: cards under the turn, kept and exported; also with the real sandbox."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab_process import Lab, end_lab, start_lab
from lab_speaker import announce, ran
from optiq.errors import ResourceError
from optiq.lab.chat.cards import Card, cards, run_card
from optiq.lab.chat.store import Chats
from optiq.lab.database import Database
from optiq.models.load import load_tokenizer
from optiq.sandbox import runner
from serve_locally import TINY, listening, tiny_served

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from conftest import Visit

END = 4078  # <|im_end|>
CALL = "<tool_call>\n<function=python>\n<parameter=code>\nprint(6 * 7)\n</parameter>\n</function>\n</tool_call>"


def test_a_card_tells_how_a_program_ended() -> None:
    run = {"code": "x", "stdout": "out", "stderr": "", "exit_code": 0, "stopped": None, "seconds": 0.125, "tier": "namespaces"}
    title = "Python · exit code 0 · 0.12 s · in the sandbox namespaces"
    assert run_card(run) == Card(title, (("Program", "x"), ("Output", "out")), "python")
    stopped = run_card({**run, "stdout": "", "exit_code": None, "stopped": "memory", "tier": "none"})
    assert stopped.title == "Python · stopped: memory · 0.12 s · without a sandbox"
    assert stopped.texts[1] == ("Output", "nothing was printed")
    assert run_card({}).title == "Python · exit code None" and run_card({"seconds": "x", "code": 5}).texts[0] == ("Program", "5")


def test_fences_of_an_export_hold_whatever_a_program_prints(tmp_path: Path) -> None:
    chats = Chats(Database(tmp_path / "lab.sqlite"))
    chat = chats.add({})
    facts = {"runs": [ran("````\n# no heading")], "calls": [{"name": "<b>", "arguments": "{}"}]}
    chats.say(chat.id, "assistant", "Done.", facts=facts)
    told = chats.as_markdown(chat.id)
    assert "Done.\n\n**Python · exit code 1 · 0.25 s · in the sandbox bubblewrap**\n\nProgram:" in told
    assert "\n`````python\n````\n# no heading\n`````\n\nOutput:\n\n`````\n" in told and "**\\<b\\>**" in told
    assert [card.title for card in cards(chats.messages(chat.id)[0].facts)][1] == "<b>"


def _ask(page: Page, question: str) -> Locator:
    """Ask with the tool, and wait for the card of what ran."""
    page.get_by_text("Settings of this chat").click()
    page.get_by_role("combobox", name="Tools").click()
    page.get_by_role("option", name="Python, in the server's sandbox").click()
    page.get_by_label("Message").fill(question)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Regenerate").wait_for()
    return page.locator(".turn-other .turn-card")


def test_a_run_is_a_card_that_stays_with_the_chat(talking_lab: Lab, visit: Callable[..., Visit]) -> None:
    seen = visit(talking_lab, "/chat")
    page = seen.page
    page.get_by_text("speaker at").wait_for()
    card = _ask(page, "run:print('hello')")
    for _ in range(2):
        assert card.locator("summary").inner_text() == "Python · exit code 1 · 0.25 s · in the sandbox bubblewrap"
        assert not card.locator("pre").first.is_visible()
        card.locator("summary").click()
        assert card.inner_text().split("\n")[1:] == [
            part for name in ("Program", "Output", "Errors") for part in (name, "print('hello')")
        ]
        page.reload()
        card.wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as Markdown").click()
    assert "```python\nprint('hello')\n```" in Path(download.value.path()).read_text()
    page.goto(f"{talking_lab.base}/server?model=m")
    page.get_by_role("combobox", name="Tools that replies may use").click()
    page.get_by_role("option", name="Python, in a sandbox").click()
    page.locator("figure.command code", has_text="optiq serve m --port 8080 --tools python").wait_for()
    assert seen.outside == [] and seen.problems == []


def test_a_reply_stays_in_its_chat_when_another_one_is_opened(talking_lab: Lab, visit: Callable[..., Visit]) -> None:
    seen = visit(talking_lab, "/chat")
    page = seen.page
    page.get_by_text("speaker at").wait_for()
    page.get_by_label("Message").fill("slowly 500: go on")
    page.keyboard.press("Enter")
    page.locator(".turn-other", has_text="word after word").wait_for()
    page.get_by_role("button", name="New chat").click()
    page.get_by_role("button", name="Send").wait_for()
    page.wait_for_timeout(500)
    assert page.locator(".turn").count() == 0
    page.locator(".chat-entry", has_text="slowly 500").click()
    page.locator(".turn-other", has_text="word after word").wait_for()
    assert page.locator(".turn").count() == 2 and seen.problems == []


@pytest.fixture
def agent() -> Iterator[str]:
    """The server's own application with the sandbox of this machine; a script in the model's place calls the tool once."""
    from optiq.serve.http.agent import Python
    from optiq.serve.http.app import make_app
    from optiq.serve.http.context import Context, Limits
    from optiq.serve.http.guard import Access
    from optiq.serve.http.shelf import Shelf
    from optiq.serve.request import Request
    from optiq.serve.scheduler import Policy
    from optiq.serve.scripted import Script, ScriptedEngine

    tokenizer: Any = load_tokenizer(TINY)
    try:
        sandbox = runner()
    except ResourceError as error:
        pytest.skip(str(error))

    def script(request: Request) -> Script:
        said = tokenizer.decode(list(request.prompt))
        answer = said.rpartition("<tool_response>\n")[2].partition("\n</tool_response>")[0] if "<tool_response>" in said else ""
        text = f"</think>\n\nIt is {answer}." if answer else f"</think>\n\n{CALL}"
        return Script([*tokenizer.encode(text, add_special_tokens=False), END])

    served = tiny_served(lambda: ScriptedEngine(tokenizer, script, Policy(max_rows=4)), tokenizer, max_tokens=1000)
    with listening(make_app(Context(Shelf(served), Limits(ping_s=1.0), python=Python(sandbox)), Access())) as url:
        yield url
    served.gateway.close()


@pytest.fixture
def agent_lab(agent: str, tmp_path: Path) -> Iterator[Lab]:
    """A workbench that takes it for a server of its own; what it ends when it goes is a process that does nothing."""
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    try:
        announce(tmp_path / "data", child.pid, agent, "tiny")
        lab = start_lab(tmp_path / "data")
        yield lab
        assert end_lab(lab) == 0
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
def test_a_program_of_a_chat_runs_in_the_sandbox(agent_lab: Lab, visit: Callable[..., Visit]) -> None:
    seen = visit(agent_lab, "/chat")
    seen.page.get_by_text("tiny at").wait_for()
    card = _ask(seen.page, "What is 6 times 7?")
    assert seen.page.locator(".turn-other .turn-body").inner_text() == "It is 42."
    title = card.locator("summary").inner_text()
    assert title.startswith("Python · exit code 0 · ") and title.endswith(f"in the sandbox {runner().name}")
    card.locator("summary").click()
    assert card.inner_text().split("\n")[1:] == ["Program", "print(6 * 7)", "Output", "42"]
    assert seen.outside == [] and seen.problems == []
