"""The documentation agrees with the code: flags, tables, paths, examples, keys, links."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from optiq.cli.main import COMMANDS
from optiq.events import MODES
from optiq.generate.decode import Statistics
from optiq.measure.sensitivity import METHODS
from optiq.measure.text import DOMAINS
from optiq.models.families import FAMILIES, USES
from optiq.quantize.encoders import ENCODERS
from optiq.quantize.settings import ENCODER_NAMES, REFERENCES
from optiq.quantize.workspace import FORMAT

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "optiq"
SCRIPT = ROOT / "scripts" / "commands.py"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "guides" / "convert.md"
FORMATS = ROOT / "docs" / "formats.md"
ALL = "\n".join(page.read_text() for page in [*PAGES, README])
ROOTS = ("src", "tests", "benchmarks", "scripts", "docs", "examples", "native")
CHOICES = {
    "encoder": (ENCODERS.names(), ENCODER_NAMES),
    "sensitivity": (METHODS,),
    "reference": (REFERENCES,),
    "domain": (DOMAINS,),
}


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("commands_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _script()


def _ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _check(page: Path) -> subprocess.CompletedProcess[str]:
    code = f"import runpy, sys; sys.path.insert(0, {str(SOURCE.parent)!r}); sys.argv = ['commands.py', '--check']; "
    code += (
        f"m = runpy.run_path({str(SCRIPT)!r}); m['main'].__globals__['PAGE'] = m['Path']({str(page)!r}); sys.exit(m['main']())"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_page_of_commands_is_current() -> None:
    done = _check(script.PAGE)
    assert done.returncode == 0, done.stderr


def test_an_edited_page_of_commands_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "commands.md"
    copy.write_text(script.PAGE.read_text().replace("--keep", "--keeps"))
    done = _check(copy)
    assert done.returncode == 1 and "python scripts/commands.py" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_flag_is_documented(command: str) -> None:
    assert f"optiq {command}" in ALL
    parser = script.parser_of(command)
    for action in [action for one in (parser, *script.verbs(parser).values()) for action in script.arguments(one)]:
        for option in action.option_strings:
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", ALL), f"optiq {command} {option} is not in docs/"


@pytest.mark.parametrize("command", ["convert", "plan"])
def test_the_guide_explains_every_flag(command: str) -> None:
    text = GUIDE.read_text()
    for action in script.arguments(script.parser_of(command)):
        if action.option_strings:
            assert any(f"{option} " in text or f"{option}`" in text for option in action.option_strings), action.option_strings


@pytest.mark.parametrize("noun", CHOICES)
def test_every_table_entry_is_documented(noun: str) -> None:
    text = GUIDE.read_text()
    for names in CHOICES[noun]:
        for name in names:
            assert f"`{name}`" in text, f"{noun} {name} is not in {GUIDE.name}"


def test_the_family_guide_names_every_preset_with_its_settings() -> None:
    text = (ROOT / "docs" / "guides" / "qwen3.5.md").read_text()
    for use in USES:
        settings = FAMILIES["qwen3.5"].uses[use]
        cells = [f"{settings[name]:g}" if name in settings else "" for name in ("temperature", "top_p", "top_k")]
        assert re.search(rf"^\| `{use}` \| {' *[|] '.join(cells)} *\|", text, re.MULTILINE), use


def test_the_family_guides_python_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "guides" / "qwen3.5.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, "qwen3.5.md", "exec"), {})


def test_every_progress_mode_is_documented() -> None:
    assert all(mode in script.PAGE.read_text() for mode in MODES)


def test_every_environment_variable_is_documented() -> None:
    names = {name for path in SOURCE.rglob("*.py") for name in re.findall(r"[\"'](OPTIQ_[A-Z]+)[\"']", path.read_text())}
    assert {"OPTIQ_BLAS", "OPTIQ_THREADS"} <= names
    assert [name for name in sorted(names) if f"`{name}" not in ALL] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_help_pages_parse(command: str) -> None:
    lines = _commands(importlib.import_module(COMMANDS[command][0]).EXAMPLE)
    assert lines
    for words in lines:
        assert words[0] == "optiq"
        script.parser_of(words[1]).parse_args(words[2:])


@pytest.mark.parametrize("page", [*PAGES, README], ids=_ids)
def test_examples_of_pages_parse(page: Path) -> None:
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for words in _commands(block):
            assert script.parser_of(words[1]).parse_args(words[2:]) is not None


def _commands(text: str) -> list[list[str]]:
    """Lines that call `optiq`, as words; what stands after two spaces or `#` explains."""
    lines = (re.split(r"\s{2,}|\s#", line.strip())[0] for line in text.replace("\\\n", " ").splitlines())
    return [shlex.split(line) for line in lines if line.startswith("optiq ")]


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_every_path_exists(page: Path) -> None:
    """Paths from the root, and in backticks also Python files below `src/optiq`."""
    text = page.read_text()
    paths = set(re.findall(rf"(?<![\w/.-])(?:{'|'.join(ROOTS)})/[\w./-]*", text))
    for path in sorted(paths):
        assert _exists(path.rstrip(".")), f"{page.name} names {path}"
    for path in re.findall(r"`([\w/]+\.py)`", text):
        assert (ROOT / path).exists() or (SOURCE / path).exists() or (page.parent / path).exists(), f"{page.name}: {path}"


def _exists(path: str) -> bool:
    if path.startswith(("benchmarks/results", "benchmarks/pictures")):  # made by the scripts
        return (ROOT / "benchmarks").is_dir()
    return (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in set(_anchors(target)), f"{page.name} links to {link}"


def _anchors(page: Path) -> Iterator[str]:
    """The names that GitHub gives to headings."""
    for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_key_of_the_receipts_is_documented() -> None:
    keys = _keys(SOURCE / "quantize" / "writing.py", "_plan_json", "_measured", "_metadata", "_table_facts")
    keys |= _keys(SOURCE / "plan" / "table.py", "choices_json", "_layer")
    keys |= _keys(SOURCE / "measure" / "divergence.py", "summary") | _keys(SOURCE / "models" / "mtp.py", "write")
    keys |= _keys(SOURCE / "quantize" / "baselines.py", "compare") | _keys(SOURCE / "models" / "inspect.py", "as_json")
    keys |= _keys(SOURCE / "cli" / "plan.py", "_plan_json", "_curve_json") | _keys(SOURCE / "cli" / "list.py", "_row")
    keys |= _keys(SOURCE / "cli" / "models.py", "run", "_row")
    keys |= _keys(SOURCE / "generate" / "bench.py", "as_json", "machine", "compare", "_spread")
    keys |= _keys(SOURCE / "cli" / "bench.py", "run") | _keys(SOURCE / "cli" / "generate.py", "_finish")
    keys |= {field.name for field in dataclasses.fields(Statistics)} | _keys(SOURCE / "generate" / "decode.py", "as_json")
    assert {"budget", "achieved_bpw", "damage_nats", "top1", "mtp_policy", "kl_mean", "points"} <= keys
    text = FORMATS.read_text()
    assert [key for key in sorted(keys) if not re.search(rf"(?<!\w){re.escape(key)}(?!\w)", text)] == []


def _keys(path: Path, *functions: str) -> set[str]:
    """String keys of the dict literals in some functions of a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            dicts = (inner for inner in ast.walk(node) if isinstance(inner, ast.Dict))
            found |= {key.value for inner in dicts for key in inner.keys if isinstance(key, ast.Constant)}
    assert found, f"{path.name} has none of {functions}"
    return found


def test_the_version_of_the_work_directory_is_the_documented_one() -> None:
    assert f"(now {FORMAT})" in FORMATS.read_text()
