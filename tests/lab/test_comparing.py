"""Comparing: the sides' commands, what `optiq compare` wrote, and the screen with texts and tokens beside each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from optiq.lab.comparing import Form, Side, comparisons, shared
from optiq.lab.place import Place

if TYPE_CHECKING:
    from conftest import Lab, Visit


def compared() -> dict[str, Any]:
    """As `optiq compare --tokens` writes it, of one document of three tokens."""
    return {
        "schema": 1,
        "reference": {"label": "base", "bytes": 2000, "bpw": None, "perplexity": 9.0},
        "models": [
            {
                "label": "small",
                "bytes": 1000,
                "bpw": 4.5,
                "kl": {"mean": 0.2, "p99": 0.5},
                "perplexity": 9.5,
                "texts": [{"prompt": "p", "first_difference": 1, "reference": "a b", "text": "a <b>c</b>"}],
                "flips": {"gsm8k": {"gained": ["1"], "lost": [], "finding": "no difference shown"}},
            }
        ],
        "tokens": {
            "documents": ["01"],
            "domains": ["prose"],
            "texts": [["The", " <b>sea", "."]],
            "reference": {"likeliest": [[" sea", ".", "x"]]},
            "models": [{"label": "small", "kl": [[0.4, 0.0, 0.1]], "likeliest": [[" land", ".", "y"]]}],
        },
    }


def test_each_side_is_a_command() -> None:
    form = Form([Side("m"), Side("m", "adapters/a", "4"), Side("n", cache="kv/recipe")], prompt="Hi", tokens=" 9 ")
    words = [form.text_words(side) for side in form.sides]
    same = ["--prompt", "Hi", "--seed", "0", "--max-tokens", "9", "--no-thinking"]
    assert words[0] == ["generate", "m", *same]
    assert words[1] == ["generate", "m", "--adapter", "adapters/a", "--kv-bits", "4", *same]
    assert words[2] == ["generate", "n", "--kv-config", "kv/recipe", *same]
    assert [side.title for side in form.sides] == ["m", "m + a + cache 4 bits", "n + recipe"] and form.models == ["m", "n"]


def test_figures_are_measured_against_the_first_model(tmp_path: Path) -> None:
    place, form = Place.open(tmp_path), Form([Side("m"), Side("n")], prompt="")
    assert form.output_name == "m-n"
    assert form.measure_words(place, tmp_path / "m-n.json")[:4] == ["compare", "m", "n", "--tokens"]


def test_texts_part_where_one_of_them_does() -> None:
    assert shared(["The sea is", "The sea was", "The land"]) == 4 and shared(["a", "a"]) == 1


def test_a_divergence_stands_at_the_token_that_it_expects(tmp_path: Path) -> None:
    place = Place.open(tmp_path)
    (tmp_path / "compared" / "x.json").write_text(json.dumps(compared()))
    (tmp_path / "compared" / "odd.json").write_text('{"schema": 1, "models": [{}]}')
    (found,) = comparisons(place)
    assert found.title == "small against base" and found.documents == ["prose: 01"]
    assert found.row(0, 0) == [("The", 0.0, "", ""), (" <b>sea", 0.4, " sea", " land"), (".", 0.0, ".", ".")]


@pytest.mark.slow
def test_texts_and_tokens_stand_beside_each_other(lab: Lab, visit: Callable[..., Visit], tiny_model: Path) -> None:
    (lab.data / "compared" / "x.json").write_text(json.dumps(compared()))
    seen = visit(lab, f"/compare?model={tiny_model}&other={tiny_model}")
    page = seen.page
    page.get_by_label("Tokens at most").fill("6")
    page.wait_for_selector("code:has-text('--max-tokens 6')")
    page.get_by_role("button", name="Write", exact=True).click()
    page.wait_for_function("document.querySelectorAll('.side .facts').length == 2")
    assert page.inner_text(".side >> nth=1").count("the same text") == 1
    token = page.locator(".token.kl-4")
    assert token.last.inner_text() == " <b>sea" and "this model ' land'" in (token.last.get_attribute("title") or "")
    assert page.locator("b").count() == 0
    assert seen.problems == [] and seen.outside == []
