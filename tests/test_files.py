"""Files are whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from optiq import files
from optiq.errors import FormatError, InputError, ResourceError

ROOT = Path(__file__).resolve().parents[1]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "plan.json"
    files.write_json(target, {"schema": 1, "name": "ö"})
    files.write_text(target.with_name("a.txt"), "b")
    assert files.read_json(target) == {"schema": 1, "name": "ö"}
    assert _names(target.parent) == ["a.txt", "plan.json"]
    assert target.stat().st_mode & 0o444 == 0o444 & ~files._UMASK


def test_a_lock_has_one_holder_until_that_closes_it(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    first, second = (os.open(tmp_path / "lock", os.O_RDWR) for _ in range(2))
    assert files.lock(first) and files.lock(first) and not files.lock(second)
    os.close(first)
    assert files.lock(second)
    os.close(second)


def test_half_a_surrogate_pair_is_written_and_read(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"schema": 1, "\ud800é": ["\udc80", "\\ud800"]})
    assert files.read_json(tmp_path / "a.json") == {"schema": 1, "\ud800é": ["\udc80", "\\ud800"]}
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    files.write_bytes(target, b"old")
    with pytest.raises(RuntimeError), files.writing(target) as file:
        file.write(b"new")
        raise RuntimeError
    assert (target.read_bytes(), _names(tmp_path)) == (b"old", ["a"])
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(target, {"x": float("nan")})
    assert target.read_bytes() == b"old"


def test_a_full_disk_is_one_clear_line_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    files.write_bytes(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ResourceError, match=r"disk is full while writing .*a: needs 2 kB, free: .*make room"):
        files.write_bytes(target, b"n" * 2000)
    with pytest.raises(ResourceError, match="disk is full"), files.building(tmp_path / "out") as place:
        (place / "x").write_text("x")
    assert (target.read_bytes(), _names(tmp_path)) == (b"old", ["a"])


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/a: .*choose a place"):
        files.write_text(tmp_path / "file" / "a", "")


def test_a_directory_appears_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with files.building(target) as place:
        assert place.parent == tmp_path and place.name.startswith(".out.partial-")
        (place / "sub").mkdir()
        (place / "sub" / "a").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "1"
    assert _names(tmp_path) == ["out"]


def test_an_existing_directory_is_replaced_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    with files.building(target) as place:
        (place / "old").write_text("")
    with pytest.raises(InputError, match="exists already"), files.building(target):
        pass
    with files.building(target, overwrite=True) as place:
        (place / "new").write_text("")
    assert (_names(target), _names(tmp_path)) == (["new"], ["out"])
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)  # a system that cannot swap two names
    with files.building(target, overwrite=True) as place:
        (place / "newer").write_text("")
    assert (_names(target), _names(tmp_path)) == (["newer"], ["out"])


def test_two_builders_of_one_directory(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(InputError, match="by another process"), files.building(target) as slower:
        (slower / "slow").write_text("")
        with files.building(target) as faster:
            (faster / "fast").write_text("")
    assert (_names(target), _names(tmp_path)) == (["fast"], ["out"])


def test_a_failed_build_leaves_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(KeyboardInterrupt), files.building(target, overwrite=True) as place:
        (place / "a").write_text("")
        raise KeyboardInterrupt
    assert (_names(target), _names(tmp_path)) == ([], ["out"])


KILLED = """
import os, signal, sys
from optiq import files
target = sys.argv[1]
if sys.argv[2] == "directory":
    with files.building(target) as place:
        (place / "a").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
with files.writing(target) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_kill_shows_nothing_and_the_next_run_sweeps(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "o[u]t"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), kind], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(_names(tmp_path)) == 1
    if kind == "file":
        files.write_text(target, "whole")
    else:
        with files.building(target) as place:
            (place / "a").write_text("whole")
    assert _names(tmp_path) == ["o[u]t"]


def test_work_in_progress_is_not_swept(tmp_path: Path) -> None:
    with files.building(tmp_path / "out") as place:
        assert files.sweep(tmp_path / "out") == []
        (place / "a").write_text("")
    assert (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "the plan .* is not valid JSON"),
        ("[]", "holds a JSON list, expected an object"),
        ('{"schema": 2}', "has schema 2, expected 1"),
        ("{}", "has schema none, expected 1"),
        ("\udcff", "is not valid JSON"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match=message):
        files.read_json(path, "plan")


def test_a_missing_file_is_an_input_error_and_a_foreign_one_needs_no_schema(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no plan at .*plan.json"):
        files.read_json(tmp_path / "plan.json", "plan")
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert files.read_json(tmp_path / "config.json", schema=None) == {"a": 1}


def test_hashes_depend_on_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea")
    assert files.sha256_json({"a": 1, "b": [1.5]}) == files.sha256_json(json.loads('{"b": [1.5], "a": 1}'))
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})


def test_room_is_checked_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: usage(10, 9, 1_500_000))
    files.need_free(tmp_path / "not" / "there", 1_000_000, "the result")
    with pytest.raises(ResourceError, match=r"the result needs 2 GB at .*, free: 1.5 MB; make room"):
        files.need_free(tmp_path, 2_000_000_000, "the result")


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (20_668_360, "20.7 MB"), (1_840_000_000, "1.84 GB"), (5_000_000_000_000, "5 TB")],
)
def test_sizes_are_decimal(n: int, text: str) -> None:
    assert files.size_text(n) == text


def test_a_tree_counts_each_file_once_and_is_removed_in_one_step(tmp_path: Path) -> None:
    tree = tmp_path / "model"
    tree.mkdir()
    (tree / "a").write_bytes(b"123")
    (tree / "b").symlink_to(tree / "a")
    (tree / "c").symlink_to(tree / "nowhere")
    assert files.tree_bytes(tree) == 3
    files.remove_tree(tree)
    assert _names(tmp_path) == []


def test_a_home_directory_that_nobody_has_is_the_users_to_mend() -> None:
    assert files.user_path("~/x") == Path.home() / "x"
    with pytest.raises(InputError, match="^~nobody-of-that-name/x: no home directory for '~nobody-of-that-name'; write"):
        files.user_path("~nobody-of-that-name/x")
