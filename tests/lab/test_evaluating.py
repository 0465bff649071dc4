"""Evaluation's command, the reports on disk, and the screen from tasks to a paired report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from optiq.lab.evaluating import Form, percent, reports, score
from optiq.lab.place import Place

if TYPE_CHECKING:
    from conftest import Lab, Visit

SCORE = {"value": 0.5, "low": 0.25, "high": 0.75, "samples": 4}


def report(label: str, baseline: str = "") -> dict[str, Any]:
    models = [{"label": name, "capability": SCORE, "tasks": {"gsm8k": SCORE}} for name in (label, baseline) if name]
    pair = {"difference": 0.1, "finding": "no difference shown"}
    return {"schema": 1, "models": models, "baseline": baseline or None, "paired": {label: {"gsm8k": pair}}}


def test_only_what_was_chosen_is_asked_for() -> None:
    form = Form(model="m", tasks=["gsm8k", "mmlu"], samples=" 5 ", baseline="b", options="a.b=1 c.d=2", card=True)
    words = form.words(Path("out"))
    assert words[:8] == ["eval", "m", "--tasks", "gsm8k,mmlu", "--samples", "5", "--baseline", "b"]
    assert words[8:] == ["--option", "a.b=1", "--option", "c.d=2", "--card", "-o", "out"]
    form.served = "http://x/v1"
    served = form.words(Path("out"))
    assert "--baseline" not in served and "--card" not in served and "mmlu.generate=true" in served
    assert Form(model="tiny:stones").output_name == "tiny-stones"


def test_reports_are_found_the_newest_first_and_broken_ones_left_out(tmp_path: Path) -> None:
    place = Place.open(tmp_path)
    texts = {"old": report("a"), "new": report("a", "a"), "odd": {"schema": 1, "models": [{}]}, "none": {"schema": 9}}
    for age, (name, data) in enumerate(texts.items()):
        (tmp_path / "evals" / name).mkdir()
        (tmp_path / "evals" / name / "report.json").write_text(json.dumps(data))
        os.utime(tmp_path / "evals" / name / "report.json", (age, age))
    new, old = reports(place)
    assert (new.title, old.title) == ("a against a", "a") and new.labels == ["a", "a (baseline)"] and new.tasks == ["gsm8k"]
    pair = new.pair(new.models[0], "gsm8k")
    assert pair is not None and pair["difference"] == 0.1 and new.pair(new.models[0], "capability") is None
    assert percent(score(old.models[0], "capability")) == "50.0 % (25.0 to 75.0)"


@pytest.mark.slow
def test_from_tasks_to_a_paired_report(lab: Lab, visit: Callable[..., Visit], tiny_model: Path) -> None:
    seen = visit(lab, f"/evaluate?model={tiny_model}&baseline={tiny_model}")
    page = seen.page
    page.get_by_role("combobox", name="Tasks; all where none is chosen").click()
    page.get_by_role("option", name="hashhop").click()
    page.keyboard.press("Escape")
    page.get_by_label("Samples per task").fill("4")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Options of tasks").fill("hashhop.characters=400")
    page.wait_for_selector("code:has-text('hashhop.characters=400')")
    page.get_by_role("button", name="Evaluate", exact=True).click()
    page.wait_for_selector(".job")
    page.wait_for_selector("h2:has-text('against')")
    assert page.inner_text("td[data-label=difference] >> nth=0").startswith("+0.0")
    assert page.inner_text("td[data-label=finding] >> nth=0").startswith("no difference shown")
    page.wait_for_selector("[aria-label='Scores by task with their intervals'] svg")
    assert seen.problems == [] and seen.outside == []
