"""Every screen in a browser: it opens, stays inside its window, asks nobody else, and nothing in it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from optiq.lab.pages.navigation import SCREENS, Screen

if TYPE_CHECKING:
    from conftest import Lab, Visit


def test_the_menu_and_the_table_of_pages_agree() -> None:
    pytest.importorskip("nicegui", reason="the workbench's library is not installed (pip install 'optiq[lab]')")
    from optiq.lab.pages import PAGES

    assert len(PAGES) == len(SCREENS)


@pytest.mark.parametrize("screen", SCREENS, ids=lambda screen: screen.title)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_screen_opens_and_fits(lab: Lab, visit: Callable[..., Visit], screen: Screen, width: int, scheme: str) -> None:
    seen = visit(lab, screen.path, width, scheme)
    assert seen.page.inner_text("h1") == screen.title
    seen.page.wait_for_timeout(300)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.outside == [] and seen.problems == []


def test_without_the_token_the_browser_gets_no_page(lab: Lab, browser: object) -> None:
    page = browser.new_context().new_page()  # type: ignore[attr-defined]
    answer = page.goto(lab.base)
    assert answer.status == 403 and "optiq lab" in page.inner_text("body")
    page.context.close()
