"""What foreign text is when a page gets it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq.lab.text import command_text, line, plain


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),  # elements show text as text: nothing is escaped twice
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        ("a\ud800b", "a\ufffdb"),
        ("model\u202egpj.exe", "model\ufffdgpj.exe"),
        ("a\x00b\x1b[31m", "a\u2400b\u241b[31m"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
    ],
)
def test_what_a_browser_cannot_carry_is_made_visible(found: object, shown: str) -> None:
    assert plain(found) == shown


def test_long_text_ends_with_how_much_is_missing() -> None:
    assert plain("x" * 12, longest=10) == "x" * 10 + " … (2 more characters)"


def test_names_are_one_line() -> None:
    assert line("a\n\n b\tc") == "a b c"


@given(st.text(alphabet=st.characters()))
def test_any_text_can_be_sent_and_stored(text: str) -> None:
    shown = plain(text)
    assert json.loads(json.dumps(shown, ensure_ascii=False).encode()) == shown and plain(shown) == shown


def test_commands_are_quoted_for_a_shell() -> None:
    assert command_text(["convert", "my model", "--keep", "a=8; rm -rf /"]) == "optiq convert 'my model' --keep 'a=8; rm -rf /'"
