"""Reasoning and answer: where the one ends and the other begins, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import replies
from optiq.models.thinking import KNOWN, THINK, Tags, tags_of
from optiq.serve.parse.deltas import Content, Reasoning, gather
from optiq.serve.parse.reasoning import ReasoningSplitter, strip_reasoning


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("Hello <think> there", False, "", "Hello <think> there"),
        ("<think>\nA b.\n</think>\n\nC d.\n", False, "A b.", "C d.\n"),
        ("A b.\n</think>\n\nC.", True, "A b.", "C."),
        ("<think>\nA.</think>C.", True, "A.", "C."),  # opened twice
        (" \n<think>\n\n</think>\n\nC.", False, "", "C."),
        ("<think>A</think> <think>B</think>C", False, "AB", "C"),
        ("<think>A</think>C <think>x</think>", False, "A", "C <think>x</think>"),
        ("<think>A < b </thi", False, "A < b </thi", ""),
        ("A never ends \n", True, "A never ends \n", ""),
        ("</think>C", True, "", "C"),
        ("C </think> D", False, "", "C </think> D"),
        (" <thi", False, "", " <thi"),
        ("  C", False, "", "  C"),
        ("", True, "", ""),
    ],
)
def test_splitting(text: str, opened: bool, reasoning: str, content: str) -> None:
    for parts in ([text], list(text)):
        message = gather(replies.deltas(ReasoningSplitter(THINK, opened), parts))
        assert (message.reasoning, message.content) == (reasoning, content)


@given(replies.texts, replies.cuts, st.booleans())
def test_any_chunking_gives_the_same_and_nothing_but_layout_is_lost(text: str, places: list[int], opened: bool) -> None:
    whole = replies.deltas(ReasoningSplitter(THINK, opened), [text])
    assert replies.deltas(ReasoningSplitter(THINK, opened), replies.pieces(text, places)) == whole
    message = gather(whole)
    rest = text
    for part in (message.reasoning, message.content):
        assert _inside(part, rest)
    dropped = len(text) - len(message.reasoning) - len(message.content)
    tags = text.count(THINK.open) * len(THINK.open) + text.count(THINK.close) * len(THINK.close)
    assert dropped <= tags + sum(char in " \t\r\n" for char in text)


def _inside(part: str, text: str) -> bool:
    """Whether the characters of one text stand in another in this order."""
    rest = iter(text)
    return all(char in rest for char in part)


def test_text_is_passed_on_as_soon_as_it_is_certain() -> None:
    splitter = ReasoningSplitter(THINK, opened=True)
    assert splitter.add("\nSo ") == [Reasoning("So")] and splitter.inside
    assert splitter.add("it is</") == [Reasoning(" it is")]
    assert splitter.add("think>") == [] and not splitter.inside
    assert splitter.add("\n\nYes") == [Content("Yes")]
    assert splitter.add(" and ") == [Content(" and ")]


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>a\nb</think>\n\nc\n", "c"),
        ("a</think>c", "c"),
        ("x <think>a</think> c", "x  c"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("<think>never ends", ""),
        ("<think>a</think><think>never ends", ""),
        ("c without", "c without"),
        ("the tag <think> opens", "the tag <think> opens"),
        ("a</think>b</think>c", "b</think>c"),
    ],
)
def test_stripping(text: str, rest: str) -> None:
    assert strip_reasoning(text) == rest


@given(st.text(alphabet="ab \n<", max_size=20), st.text(alphabet="cd \n<", max_size=20), st.booleans())
def test_stripping_and_splitting_agree(reasoning: str, content: str, opened: bool) -> None:
    text = ("" if opened else "<think>") + reasoning + "</think>" + content
    message = gather(replies.deltas(ReasoningSplitter(THINK, opened), [text]))
    assert message.content.strip() == strip_reasoning(text) == content.strip()
    assert message.reasoning == reasoning.strip()


def test_tags_of_templates() -> None:
    assert tags_of("{{ '<think>\\n' }}...</think>") == THINK
    assert tags_of("[THINK]{{ x }}[/THINK]") == Tags("[THINK]", "[/THINK]") and tags_of("{{ messages }}") is None
    for tags in KNOWN:
        assert tags.opened_by(f"question\n{tags.open}\n") and not tags.opened_by(f"{tags.open}\n\n{tags.close}\n\n")
