"""axe-core on each screen, light and dark: nothing serious or critical."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab_process import Lab
from optiq.lab.pages.navigation import SCREENS, Screen

if TYPE_CHECKING:
    from conftest import Visit

GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def axe() -> str:
    """The checker's script, which comes with a wheel of the `dev` extra."""
    found = find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe-core is not installed (pip install axe-playwright-python, part of 'optiq[dev]')")
    return (Path(found.origin).parent / "axe.min.js").read_text()


def problems(seen: Visit, axe: str) -> list[dict[str, Any]]:
    """What it finds on a page as that is now: rule, gravity, the elements."""
    seen.page.evaluate(axe)  # the content policy would refuse a script element
    # Without reading the style sheets once more, for which the UI library would draw its loading bar.
    found = seen.page.evaluate("() => axe.run(document, { resultTypes: ['violations'], preload: false })")
    return [
        {
            "rule": one["id"],
            "impact": one["impact"],
            "why": [(node["html"][:200], node["failureSummary"]) for node in one["nodes"]],
        }
        for one in found["violations"]
        if one["impact"] in GRAVE
    ]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS, ids=lambda screen: screen.title)
def test_a_screen_has_no_serious_problem(lab: Lab, visit: Callable[..., Visit], axe: str, screen: Screen, scheme: str) -> None:
    seen = visit(lab, screen.path, 1280, scheme)
    seen.page.wait_for_timeout(1500)
    for one in seen.page.locator("details").all():
        one.evaluate("element => { element.open = true }")
    seen.page.wait_for_timeout(300)
    assert problems(seen, axe) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_conversation_with_cards_has_no_serious_problem(
    talking_lab: Lab, visit: Callable[..., Visit], axe: str, scheme: str
) -> None:
    seen = visit(talking_lab, "/chat", 390, scheme)
    page = seen.page
    page.get_by_text("speaker at").wait_for()
    page.get_by_label("Message").fill("run:" + "a_very_long_word " * 3 + "x" * 400)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Regenerate").wait_for()
    page.locator(".turn-card summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('.turn-card pre')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert problems(seen, axe) == []
