"""Packed caches: their commands, what is on disk of them, and the screen from measuring to a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from optiq.errors import FormatError
from optiq.kv.recipe import SCHEMES as KNOWN
from optiq.lab.caching import SCHEMES, Form, Study, recipe_folders
from optiq.lab.place import Place

if TYPE_CHECKING:
    from conftest import Lab, Visit


def test_measuring_takes_only_what_was_chosen_and_recipes_what_was_measured(tmp_path: Path) -> None:
    study = Study(Place.open(tmp_path), "Qwen/Qwen3.5-0.8B")
    words = study.measure_words(Form(widths="3, 4,8", rows="2"))
    assert words[:6] == ["kv-cache", "Qwen/Qwen3.5-0.8B", "--target-bits", "3", "--candidate-bits", "3,4,8"]
    assert words[6:] == ["--n-samples", "2", "-o", str(study.folder)] and set(SCHEMES) == set(KNOWN)
    made = study.make_words(4.5, tmp_path / "kv" / study.output_name(4.5))
    assert made[2:] == ["--target-bits", "4.50", "--from", str(study.folder), "-o", f"{tmp_path}/kv/Qwen3.5-0.8B-4.50bits"]
    assert Study(study.place, "other/Qwen3.5-0.8B").folder != study.folder


def test_a_budget_buys_the_largest_plan_within_it(tmp_path: Path) -> None:
    study = Study(Place.open(tmp_path), "m")
    study.folder.mkdir()
    points = [{"bits": bits, "bytes_per_token": 100 * bits, "predicted_kl": 1 / bits} for bits in (8, 4, 6)]
    (study.folder / "kv_curve.json").write_text(json.dumps({"schema": 1, "full_bytes_per_token": 1600, "points": points}))
    curve = study.curve()
    assert [curve.at(bits).bits for bits in (3, 4, 5.99, 9)] == [4, 4, 4, 8] and curve.full_bytes == 1600
    (study.folder / "kv_curve.json").write_text('{"schema": 1, "points": [{}]}')
    with pytest.raises(FormatError, match="lacks or garbles a field"):
        study.curve()
    with pytest.raises(FormatError, match="cannot be read"):
        study.damages()


def test_recipes_on_the_disk_are_offered(tmp_path: Path) -> None:
    place = Place.open(tmp_path)
    (tmp_path / "kv" / "four").mkdir()
    (tmp_path / "kv" / "four" / "kv_config.json").write_text("[]")
    assert recipe_folders(place) == {str(tmp_path / "kv" / "four"): "four"}


@pytest.mark.slow
def test_from_measuring_to_a_recipe(lab: Lab, visit: Callable[..., Visit], tiny_model: Path) -> None:
    seen = visit(lab, f"/kv-cache?model={tiny_model}")
    page = seen.page
    page.get_by_text("How it is measured", exact=True).click()
    page.get_by_label("Tokens per row").fill("64")
    page.get_by_label("Rows of text").fill("1")
    page.wait_for_selector("code:has-text('--seq-len 64')")
    page.get_by_role("button", name="Measure", exact=True).click()
    page.wait_for_selector("[aria-label='Damage of packed keys and values by layer and width'] svg")
    before = page.inner_text(".figures dd >> nth=0")
    page.locator(".q-slider [tabindex]").focus()
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('.figures dd').innerText != before", arg=before)
    page.get_by_role("button", name="Make the recipe").click()
    page.wait_for_selector("td[data-label='KL measured']")
    assert len(recipe_folders(Place(lab.data))) == 2
    assert seen.problems == [] and seen.outside == []
