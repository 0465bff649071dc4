"""Without a sandbox there is no execution."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from optiq.errors import InputError, ResourceError
from optiq.sandbox import Policy, runner, seccomp
from optiq.sandbox.bubblewrap import _told
from optiq.sandbox.launch import interpreter_folders
from optiq.sandbox.runner import LAUNCHERS
from optiq.sandbox.seatbelt import profile


def test_it_fails_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in LAUNCHERS:
        monkeypatch.setattr(kind, "missing", staticmethod(lambda: "not on this machine"))
    with pytest.raises(ResourceError) as error:
        runner()
    text = str(error.value)
    assert "no program is run" in text and "--unsafe-no-sandbox" in text and "bubblewrap: not on this machine" in text
    assert "\n" not in text


def test_a_launcher_that_does_not_hold_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `bwrap` that runs the program as it is must not pass for a sandbox."""
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for kind in LAUNCHERS[1:]:
        monkeypatch.setattr(kind, "missing", staticmethod(lambda: "not on this machine"))
    with pytest.raises(ResourceError, match="bubblewrap: "):
        runner()


def test_a_person_may_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIQ_TEST_KEY", "open-sesame")
    found = runner(unsafe=True)
    assert found.name == "none"
    outcome = found.run("import os\nprint(os.environ.get('OPTIQ_TEST_KEY'), os.listdir())", Policy(seconds=20, processes=10_000))
    assert outcome.stdout == "None []\n"
    assert found.run("import time\ntime.sleep(60)", Policy(seconds=1, processes=10_000)).stopped == "time"


@pytest.mark.parametrize("limit", ["seconds", "cpu_seconds", "memory_bytes", "processes", "file_bytes", "output_bytes"])
def test_limits_must_be_positive(limit: str) -> None:
    with pytest.raises(InputError, match=f"{limit} is 0"):
        Policy(**{limit: 0})


def test_text_must_be_unicode() -> None:
    with pytest.raises(InputError, match="program holds half of a surrogate pair at character 7"):
        runner(unsafe=True).run("print('\ud800')")
    with pytest.raises(InputError, match="stdin holds"):
        runner(unsafe=True).run("", stdin="\ud800")


def test_what_bubblewrap_has_half_told_is_not_told(tmp_path: Path) -> None:
    told = tmp_path / "told"
    for text, first in (("", None), ('{\n    "child-pid": 4', None), ('{\n    "child-pid": 42\n}\n', 42)):
        told.write_text(text)
        with told.open() as file:
            assert _told(file.fileno()) == first


def test_a_home_is_no_folder_of_an_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for prefix, taken in (("home", False), ("", False), ("home/.venv", True)):
        monkeypatch.setattr(sys, "prefix", str(tmp_path / prefix))
        assert (tmp_path / prefix in interpreter_folders(sys.executable)) == taken


def test_paths_must_exist() -> None:
    with pytest.raises(InputError, match="/does/not/exist"):
        Policy(readable=(Path("/does/not/exist"),))


@pytest.mark.skipif(not seccomp.supported(), reason="no filter for this processor")
def test_the_filter_jumps_within_itself() -> None:
    program = seccomp.program()
    count = len(program) // 8
    assert len(program) % 8 == 0 and count < 4096
    for line in range(count):
        kind, yes, no = program[8 * line], program[8 * line + 2], program[8 * line + 3]
        assert kind == 6 or line + 1 + max(yes, no) < count
    assert program[-8] == 6


def test_seatbelt_denies_what_it_does_not_name() -> None:
    rules = profile("/usr/bin/python3", Policy(readable=(Path("/usr"),)), "/tmp/scratch").splitlines()
    assert rules[:2] == ["(version 1)", "(deny default)"] and rules[-1] == "(deny network*)"
    assert not any('(subpath "/")' in rule for rule in rules)
