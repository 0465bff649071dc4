"""The README agrees with the result files, the tree and itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _check(readme: Path | None = None) -> subprocess.CompletedProcess[str]:
    script = ROOT / "scripts" / "readme.py"
    if readme is None:
        return subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    code = f"import runpy, sys; sys.argv = ['readme.py', '--check']; m = runpy.run_path({str(script)!r}); "
    code += f"m['main'].__globals__['README'] = m['Path']({str(readme)!r}); sys.exit(m['main']())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_generated_parts_are_current() -> None:
    done = _check()
    assert done.returncode == 0, done.stderr


def test_an_edited_table_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text()
    copy.write_text(text.replace("<!-- end: tree -->", "one more line\n<!-- end: tree -->"))
    done = _check(copy)
    assert done.returncode == 1
    assert "python scripts/readme.py" in done.stderr


def test_a_lost_part_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text().replace("<!-- generated: bars -->", ""))
    done = _check(copy)
    assert done.returncode == 1
    assert "expected ['bars', 'cpu', 'engine', 'evals', 'lora', 'quality', 'tree']" in done.stderr


def test_every_local_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
