"""Streams of tokens and pieces: whole characters, and stops wherever they lie."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optiq.generate.text import BROKEN, Pieces, StopStrings

TEXT = "naïve café — 😀👩‍👩‍👧 日本語 𝄞 \n\n  spaces\t<think>"


def test_characters_that_are_spread_over_tokens_come_whole(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert any(BROKEN in tokenizer.decode([token]) for token in ids), "the text does not test what it should"
    pieces = Pieces(tokenizer)
    found = [pieces.add(token) for token in ids] + [pieces.finish()]
    assert "".join(found) == TEXT
    assert not any(BROKEN in piece for piece in found)
    for piece in found:
        piece.encode()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 4091), max_size=40))
def test_any_tokens_add_up_to_their_text(loaded: tuple[Any, Any], ids: list[int]) -> None:
    """Random ids are full of bytes that are no characters; the first 256 tokens are single bytes."""
    tokenizer = loaded[1]
    for tokens in (ids, [token % 256 for token in ids]):
        pieces = Pieces(tokenizer)
        found = "".join(pieces.add(token) for token in tokens) + pieces.finish()
        assert found == (tokenizer.decode(tokens) if tokens else "")


def test_endless_broken_bytes_are_not_held_back(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    (continuation,) = {token for token in range(256) if tokenizer.convert_ids_to_tokens(token) == "Ģ"}  # byte 0x80
    pieces = Pieces(tokenizer)
    assert len("".join(pieces.add(continuation) for _ in range(20))) == 17  # three may still be a character


@pytest.mark.parametrize(
    ("stops", "pieces", "passed", "found"),
    [
        (["END"], ["a E", "N", "D b"], "a ", "END"),
        (["END"], ["a E", "N", "X"], "a ENX", None),
        (["END"], ["EEN", "D"], "E", "END"),
        (["b", "ab"], ["xa", "b"], "x", "ab"),  # the earlier place wins
        (["\n\n"], ["one\n", "two\n", "\nthree"], "one\ntwo", "\n\n"),
        (["END"], ["a EN"], "a EN", None),  # what was held back comes at the end
        ([], ["a", "b"], "ab", None),
        (["aab"], ["aa", "ab"], "a", "aab"),
    ],
)
def test_stop_strings(stops: list[str], pieces: list[str], passed: str, found: str | None) -> None:
    gate = StopStrings(stops)
    text = ""
    for piece in pieces:
        text += gate.pass_on(piece)
        if gate.found is not None:
            break
    else:
        text += gate.finish()
    assert (text, gate.found) == (passed, found)
