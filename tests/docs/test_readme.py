"""The README agrees with the result files, the tree and itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _check(root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    code = f"import pathlib, runpy, sys; m = runpy.run_path({str(ROOT / 'scripts' / 'readme.py')!r}); "
    code += f"sys.argv = ['readme.py', '--check']; sys.exit(m['main'](pathlib.Path({str(root)!r})))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def _copy(folder: Path, page: str, old: str, new: str) -> Path:
    """README and guides in a folder of their own, one of them edited."""
    shutil.copytree(ROOT / "docs" / "guides", folder / "docs" / "guides")
    shutil.copy(ROOT / "README.md", folder)
    text = (folder / page).read_text()
    assert old in text
    (folder / page).write_text(text.replace(old, new))
    return folder


def test_generated_parts_are_current() -> None:
    done = _check()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "part"), [("README.md", "tree"), ("docs/guides/evaluation.md", "evals")])
def test_an_edited_table_is_noticed(tmp_path: Path, page: str, part: str) -> None:
    end = f"<!-- end: {part} -->"
    done = _check(_copy(tmp_path, page, end, f"one more line\n{end}"))
    assert done.returncode == 1
    assert f"{page}: stale; run: python scripts/readme.py" in done.stderr


def test_a_lost_part_is_noticed(tmp_path: Path) -> None:
    done = _check(_copy(tmp_path, "README.md", "<!-- generated: bars -->", ""))
    assert done.returncode == 1
    assert "expected ['bars', 'quality', 'speed', 'tree']" in done.stderr


def test_every_local_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
