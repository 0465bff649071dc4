"""Fine-tuning's commands, what is on disk of it, and the screen from data to an adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lora_training import folder, write
from optiq.lab.place import Place
from optiq.lab.tuning import METHODS, PRESETS, SCALINGS, Form, adapters, data_sets, fuse_words, losses, merge_words
from optiq.lora import ranks, settings

if TYPE_CHECKING:
    from conftest import Lab, Visit


def test_the_form_knows_what_the_command_knows() -> None:
    assert set(PRESETS) == set(settings.PRESETS) and set(METHODS) == set(settings.METHODS)
    assert {name or "by_bits" for name in SCALINGS} == set(ranks.SCALINGS.names())


def test_training_takes_only_what_was_chosen() -> None:
    form = Form(model="models/Qwen3.5-0.8B", data="my data.jsonl", iters=" 20 ", epochs="3", mask_prompt=False)
    assert form.output_name == "Qwen3.5-0.8B-my-data"
    words = form.train_words(Path("out"))
    assert words[:5] == ["lora", "train", "models/Qwen3.5-0.8B", "--data", "my data.jsonl"]
    assert words[5:] == ["--no-mask-prompt", "--iters", "20", "-o", "out"]
    assert form.check_words()[-3:] == ["--no-mask-prompt", "--show", "3"]
    assert Form().missing() == "choose a model first" and Form(model="m").missing() == "choose data first" and not form.missing()


def test_losses_come_from_the_log_and_the_steps_between_from_the_job(tmp_path: Path) -> None:
    notes = [("load", 1, "loss 9"), ("train", 1, "loss 3.5"), ("train", 2, "loss 3.0"), ("train", 3, "unknown")]
    assert losses(tmp_path, notes).training == [(1, 3.5), (2, 3.0)]
    write(tmp_path / "train.jsonl", [{"step": 2, "loss": 2.9}, {"step": 2, "valid": 2.5}])
    found = losses(tmp_path, notes)
    assert found.training == [(1, 3.5), (2, 2.9)] and found.validation == [(2, 2.5)]


def test_adapters_and_data_on_the_disk_are_found(tmp_path: Path) -> None:
    place = Place.open(tmp_path)
    folder(tmp_path / "data" / "stones")
    (tmp_path / "data" / "one.jsonl").write_text("{}")
    assert list(data_sets(place).values()) == ["one.jsonl", "stones"]
    for name, text in (("good", {"base_model_name_or_path": "base", "r": 8, "optiq": {"steps": 5}}), ("odd", [])):
        (tmp_path / "adapters" / name).mkdir()
        (tmp_path / "adapters" / name / "adapter_config.json").write_text(json.dumps(text))
    (found,) = adapters(place)
    assert (found.title, found.base, found.rank, found.steps, found.valid) == ("good", "base", 8, 5, None)
    assert merge_words([found, found], "1, 0.5", Path("o"))[4:] == ["--model", "base", "--scales", "1,0.5", "-o", "o"]
    assert fuse_words(found, Path("o")) == ["lora", "fuse", "base", "--adapter", str(found.path), "-o", "o"]


@pytest.mark.slow
def test_from_data_to_an_adapter_that_was_stopped_and_gone_on_with(
    lab: Lab, visit: Callable[..., Visit], tiny_model: Path
) -> None:
    folder(lab.data / "data" / "stones", 12, 4)
    seen = visit(lab, f"/fine-tune?model={tiny_model}")
    page = seen.page
    page.get_by_label("Data, a file or a folder").click()
    page.get_by_role("option", name="stones").click()
    page.get_by_label("Steps", exact=True).fill("12")
    page.get_by_role("button", name="Check the data").click()
    page.wait_for_selector("mark:has-text('red stone')")
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_selector(".stage-note:has-text('of 12 steps')")
    page.get_by_role("button", name="Cancel job").click()
    page.wait_for_selector("text=cancelled")
    page.get_by_role("button", name="Resume job").click()
    page.wait_for_selector("td[data-label=steps]:has-text('12')")
    page.get_by_role("button", name="Losses of").click()
    page.wait_for_selector("[aria-label='Loss over steps'] svg")
    assert seen.problems == [] and seen.outside == []


@pytest.mark.slow
def test_two_trainings_of_one_name_write_two_adapters(lab: Lab, visit: Callable[..., Visit], tiny_model: Path) -> None:
    folder(lab.data / "data" / "stones", 12, 4)
    seen = visit(lab, f"/fine-tune?model={tiny_model}")
    page = seen.page
    page.get_by_label("Data, a file or a folder").click()
    page.get_by_role("option", name="stones").click()
    page.get_by_label("Steps", exact=True).fill("2")
    page.get_by_label("Name of the adapter").fill("twin")
    page.locator("code", has_text="/adapters/twin").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.locator("[role=status]", has_text="so this writes twin-2.").wait_for()
    page.locator("code", has_text="/adapters/twin-2").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    names = page.get_by_role("region", name="Adapters").locator("td[data-label=adapter]")
    names.filter(has_text=re.compile("^twin-2$")).wait_for()
    assert names.filter(has_text=re.compile("^twin$")).count() == 1
    assert seen.problems == [] and seen.outside == []
