"""Streams of tokens and pieces: whole characters, and stops wherever they lie."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import replies
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


def _passed(stops: list[str], pieces: list[str]) -> tuple[str, str | None, list[str]]:
    """What comes through in all, the stop that was found, and what has come through after each piece."""
    gate = StopStrings(stops)
    shown: list[str] = [""]
    for piece in pieces:
        shown.append(shown[-1] + gate.pass_on(piece))
        if gate.found is not None:
            return shown[-1], gate.found, shown
    return shown[-1] + gate.finish(), None, shown


@settings(max_examples=300, deadline=None)
@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_any_chunking_stops_at_the_same_place_and_leaks_nothing(text: str, stops: list[str], places: list[int]) -> None:
    pieces = replies.pieces(text, places)
    passed, found, shown = _passed(stops, pieces)
    assert _passed(stops, list(text))[:2] == _passed(stops, [text])[:2] == (passed, found)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if found is None:
        assert passed == text and not ends
    else:
        assert text.startswith(passed + found) and len(passed + found) == min(ends)
    for piece_end, part in zip(_ends(pieces), shown[1:], strict=False):
        assert passed.startswith(part), "what was shown is never taken back"
        held = text[len(part) : piece_end]
        assert found is not None or not held or any(stop.startswith(held) for stop in stops)


def _ends(pieces: list[str]) -> list[int]:
    return [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))]


@pytest.mark.parametrize(
    ("stops", "pieces", "passed", "found"),
    [
        (["END"], ["a E", "N", "D b"], "a ", "END"),
        (["END"], ["a E", "N", "X"], "a ENX", None),
        (["END"], ["EEN", "D"], "E", "END"),
        (["b", "ab"], ["xa", "b"], "x", "ab"),  # of two that end together the longer wins
        (["b", "abc"], ["xabc"], "xa", "b"),  # of two others the one that is complete first
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
