"""Twenty texts that are not what they seem, and how one sees in a browser that all of them stayed text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = (
    "<script data-hostile>window.hostile = 1</script>",
    "<img data-hostile src=x onerror=window.hostile=2>",
    '"><svg data-hostile onload=window.hostile=3>',
    "' autofocus onfocus=window.hostile=4 data-hostile='",
    "[link](javascript:window.hostile=5) ![](http://example.invalid/a.png)",
    "<a data-hostile href='javascript:window.hostile=6'>here</a>",
    "<iframe data-hostile srcdoc='<script>top.hostile=7</script>'></iframe>",
    "{{ constructor.constructor('window.hostile=8')() }} ${window.hostile=8}",
    "</textarea></title></style></script><script data-hostile>window.hostile=9</script>",
    "<style data-hostile>body { display: none }</style>",
    "<meta data-hostile http-equiv=refresh content='0;url=http://example.invalid/'>",
    "<base data-hostile href=http://example.invalid/><link data-hostile rel=stylesheet href=//example.invalid/a.css>",
    ":onclick=window.hostile=13 v-html=window.hostile",
    "# heading\n\n```html\n<b data-hostile>code</b>\n```\n| a | b |\n|---|---|\n**bold** <b data-hostile>html</b>",
    "broken \udcff\udc80 \ud800 utf-8",
    "controls \x00 \x1b[31m \x07 \x08 \r end",
    "direction \u202egnp.exe \u2066 name\u2069",
    "long " + "x" * 30_000 + " long",
    "deep " + "<div data-hostile>" * 500,
    "%s %n $(touch hostile) `touch hostile` ; rm -rf hostile \\ \" '",
)


def check(page: Page, shown: Sequence[str] = ()) -> None:
    """Nothing of them ran, nothing became an element, nothing reaches beyond the window; ``shown`` can be read."""
    found = page.evaluate(
        "() => ({ ran: window.hostile ?? null, made: document.querySelectorAll('[data-hostile]').length,"
        " wide: document.documentElement.scrollWidth - window.innerWidth, seen: getComputedStyle(document.body).display,"
        " text: document.body.textContent })"
    )
    text = " ".join(str(found.pop("text")).split())
    assert found["ran"] is None and found["made"] == 0 and found["wide"] <= 0 and found["seen"] != "none", found
    for one in shown:
        assert " ".join(one.split()) in text, one[:200]
