"""`optiq list`, `optiq rm` and `optiq doctor` on real directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from optiq.cli.main import main


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub cache of this test alone."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_a_folder_whose_name_is_not_utf8_is_listed_as_json(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    broken = Path(f"{tmp_path}/odd \udcff")
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "qwen3"}')
    assert main(["list", str(tmp_path), "--json"]) == 0
    told = capfdbinary.readouterr().out.decode("utf-8")
    assert "odd \\udcff" in told and "odd \udcff" in json.dumps(json.loads(told), ensure_ascii=False)
    assert main(["inspect", str(broken), "--json"]) == 2
    assert "is not UTF-8 text" in json.loads(capfdbinary.readouterr().out)["error"]["message"]
    assert main(["list", str(tmp_path)]) == 0
    assert b"odd \\udcff" in capfdbinary.readouterr().out


def test_list_shows_size_bits_kind_and_path(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tiny_model.parent), "--json"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out)["models"] if row["path"] == str(tiny_model)]
    assert row["kind"] == "checkpoint" and row["architecture"] == "qwen3_5"
    assert row["bytes"] > 20_000_000 and row["bpw"] == pytest.approx(16, abs=0.1)
    assert main(["list", str(tiny_model)]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "GB", "bits", "kind", "path"]
    assert line.split()[1:3] == ["0.021", "16.01"]


def test_list_shows_a_broken_model_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    assert main(["list", "--dir", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["kind"] == "broken" and "not valid JSON" in row["problem"]
    assert main(["list", str(tmp_path / "not")]) == 2


def test_rm_asks_and_then_deletes(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    assert main(["rm", str(model)]) == 2
    assert "wants a confirmation: add --yes" in capsys.readouterr().err
    assert model.exists()
    assert main(["rm", str(model), "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [str(model)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("nothing", "no directory and no cached model"),
        ("folder", "does not hold config.json and *.safetensors, so it is not removed"),
        ("checkout", "is under version control"),
        ("here", "contains the present or the home directory"),
        ("link", "is not a directory"),
    ],
)
def test_rm_refuses_what_is_no_model(
    make: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    if make != "nothing":
        place.mkdir()
    if make not in ("nothing", "folder"):
        (place / "config.json").write_text("{}")
        (place / "model.safetensors").write_bytes(b"")
    if make == "checkout":
        (place / ".git").mkdir()
    if make == "here":
        monkeypatch.chdir(place)
    if make == "link":
        place.rename(tmp_path / "real")
        place.symlink_to(tmp_path / "real")
    assert main(["rm", str(place), "--yes"]) == 2
    assert message in capsys.readouterr().err
    assert make == "nothing" or place.exists()


def test_doctor_reports_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--no-measure", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert [check["name"] for check in report["checks"]] == ["machine", "mlx", "mlx-lm", "blas", "kernels", "disk", "hub"]
    assert all(check["advice"] or check["status"] == "ok" for check in report["checks"])
