"""Places, the database, the curve, the commands that pages make."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
from pathlib import Path

import pytest

from optiq.cli.lab import run as _run  # noqa: F401  the command can be imported without its library
from optiq.errors import FormatError, InputError, ResourceError
from optiq.lab import curve
from optiq.lab.ask import ask
from optiq.lab.database import Database, Preferences
from optiq.lab.jobs.job import State
from optiq.lab.jobs.store import Store
from optiq.lab.library import Library
from optiq.lab.outputs import Output, Outputs
from optiq.lab.place import Place, free_name, slug
from optiq.lab.quantizing import Choices, Study


def test_the_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    place = Place.open(tmp_path / "lab")
    assert place.token() == place.token() and len(place.token()) >= 32
    assert stat.S_IMODE((place.root / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE(place.root.stat().st_mode) == 0o700


def test_two_workbenches_do_not_share_a_directory(tmp_path: Path) -> None:
    Place.open(tmp_path).claim()
    with pytest.raises(ResourceError, match="another workbench runs on"):
        Place.open(tmp_path).claim()


def test_a_broken_token_is_named(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    with pytest.raises(InputError, match="holds no token"):
        Place.open(tmp_path).token()


@pytest.mark.parametrize(("name", "found"), [("Qwen/Qwen3.5-0.8B", "Qwen-Qwen3.5-0.8B"), ("../../etc", "etc"), ("äöü", "model")])
def test_any_name_makes_a_folder_name(name: str, found: str) -> None:
    assert slug(name) == found


def test_free_names_count_up(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert free_name(tmp_path, "a") == tmp_path / "a-3"
    (tmp_path / "b.json").touch()
    assert free_name(tmp_path, "b", ".json") == tmp_path / "b-2.json"


def test_a_name_belongs_to_the_job_that_was_given_it_until_that_is_forgotten(tmp_path: Path) -> None:
    place = Place.open(tmp_path)
    store = Store(Database(place.database), place.folder("jobs"))
    outputs, models = Outputs(place, store), place.folder("models")
    assert outputs.free("models", "m") == Output(models / "m")
    first = store.add("Make m", ["convert"], str(tmp_path), {"output": str(models / "m")}).id
    for state in (State.QUEUED, State.RUNNING, State.FAILED, State.CANCELLED, State.INTERRUPTED):
        store.put(first, state)
        assert outputs.free("models", "m") == Output(models / "m-2", f"m belongs to job {first}, so this writes m-2.")
    store.add("Make m-2", ["convert"], str(tmp_path), {"output": str(models / "m-2")})
    assert outputs.free("models", "m").path == models / "m-3"
    store.remove(first)
    assert outputs.free("models", "m") == Output(models / "m")
    (models / "m").mkdir()
    assert outputs.free("models", "m").remark == "m is there already, so this writes m-3."
    (place.folder("compared") / "a.json").touch()
    assert outputs.free("compared", "a", ".json").path.name == "a-2.json"


def test_files_that_are_no_database_of_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, and longer than a header of one would have to be" * 20)
    with pytest.raises(FormatError, match="is not a database"):
        Database(tmp_path / "text")
    sqlite3.connect(tmp_path / "newer").execute("PRAGMA user_version = 99").connection.close()
    with pytest.raises(FormatError, match="has schema 99"):
        Database(tmp_path / "newer")


def test_preferences_outlive_a_visit(tmp_path: Path) -> None:
    Preferences(Database(tmp_path / "db")).set("theme", "dark")
    again = Preferences(Database(tmp_path / "db"))
    assert again.get("theme") == "dark" and again.get("other", "auto") == "auto"


def test_a_budget_buys_what_lies_between_two_plans(tmp_path: Path) -> None:
    points = [{"bytes": 10 * n, "total_files": 10 * n + 1, "bpw": n, "predicted_kl": 1 / n} for n in (4, 2, 3)]
    (tmp_path / "c.json").write_text(json.dumps({"schema": 1, "points": points}))
    found = curve.load(tmp_path / "c.json")
    assert [found.at(bpw).bpw for bpw in (1.0, 2.0, 3.5, 9.0)] == [2.0, 2.0, 3.5, 4.0]
    assert [found.at(bpw).bytes for bpw in (4, 3.5, 3)] == [41, 36, 31]
    assert found.at(2.5).kl == pytest.approx((1 / 2 + 1 / 3) / 2)
    (tmp_path / "d.json").write_text('{"schema": 1, "points": [{"bpw": 1}]}')
    with pytest.raises(FormatError, match="garbles a field"):
        curve.load(tmp_path / "d.json")


def test_commands_carry_only_what_was_chosen(tmp_path: Path) -> None:
    study = Study.of(Place.open(tmp_path), "Qwen/Qwen3.5-0.8B")
    words = study.convert_words(Choices(candidate_bits="4, 8"), 4.5, tmp_path / "models" / study.output_name(4.5))
    assert words[:6] == ["convert", "Qwen/Qwen3.5-0.8B", "--target-bpw", "4.500", "--candidate-bits", "4,8"]
    assert words[6:] == ["-o", f"{tmp_path}/models/Qwen3.5-0.8B-4.50bpw", "--work", str(study.work)]
    assert Study.of(study.place, "other/Qwen3.5-0.8B").key != study.key
    assert "--overwrite" not in study.measure_words(Choices())


def test_asking_a_command_gives_its_json_or_its_words(tiny_model: Path, tmp_path: Path) -> None:
    async def both() -> None:
        library = Library([tiny_model.parent, tmp_path / "missing"])
        assert [model.title for model in await library.ready()][-1] == tiny_model.name and library.problem == ""
        with pytest.raises(InputError, match="is not there, expected a model directory"):
            await ask(["inspect", str(tmp_path / "missing")])
        with pytest.raises(ResourceError, match="took longer than"):
            await ask(["doctor"], limit_s=0.01)

    asyncio.run(both())
