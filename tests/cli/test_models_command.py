"""`optiq models`: the reference models, and which of them fit."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from optiq.cli.main import main
from optiq.kernels import memory
from optiq.models.families import FAMILIES
from optiq.models.reference import GB, REFERENCES, ROOM_BYTES


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the command went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_every_model_with_what_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "usable_bytes", lambda: 7_100_000_000)
    assert main(["models", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["memory_bytes"], data["room_bytes"]) == (7_100_000_000, ROOM_BYTES)
    rows = {row["id"].split("/")[1].split("-OptiQ")[0]: row for row in data["models"]}
    assert [name for name, row in rows.items() if row["fits"]] == ["Qwen3.5-0.8B", "Qwen3.5-2B", "Qwen3.5-4B", "Qwen3.5-9B"]
    nine = rows["Qwen3.5-9B"]
    assert nine["size_bytes"] == 5_600_000_000 and nine["needed_bytes"] == 7_100_000_000 and nine["gsm8k"] == 90.0
    assert nine["thinks"] and not rows["Qwen3.5-0.8B"]["thinks"]

    assert main(["models"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["model", "GB", "GSM8K", "thinks"]
    assert lines[3].split()[:4] == ["mlx-community/Qwen3.5-9B-OptiQ-4bit", "5.6", "90.0", "yes"] and lines[3].endswith("fits")
    assert lines[4].endswith("needs 17.2 GB") and "7.1 GB for a model" in lines[7]


def test_this_machine_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["memory_bytes"] == memory.usable_bytes() > 0
    assert all(row["fits"] == (row["needed_bytes"] <= data["memory_bytes"]) for row in data["models"])


def test_the_rows_are_those_of_the_guide() -> None:
    """The page that users read and the table say the same."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "qwen3.5.md").read_text()
    told = re.findall(r"^\| `(mlx-community/[^`]+)` \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
    assert told == [(model.id, f"{model.size_bytes / GB:.1f}", f"{model.gsm8k:.1f}") for model in REFERENCES]
    assert len(REFERENCES) == 6 and all(model.family in FAMILIES for model in REFERENCES)


def test_the_document_has_these_figures(shared: Path) -> None:
    (document,) = (shared / "spec").glob("*960b4ffdeb215e47*")
    text = document.read_text()
    for model in REFERENCES:
        assert f"{model.id.split('/')[1]}{model.size_bytes / GB:.1f} GB{model.gsm8k:.1f}%" in text
