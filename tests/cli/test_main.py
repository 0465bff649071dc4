"""The edge: every way to end a command is one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from optiq import __version__
from optiq.cli import main as edge
from optiq.errors import FormatError, InputError
from optiq.events import Events

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
HELP_SECONDS = 0.3
Runner = Callable[[argparse.Namespace, Events], int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Runner], None]:
    """Puts a function in the place of `optiq doctor`."""

    def put(run: Runner) -> None:
        module = types.ModuleType("optiq.cli.doctor")
        module.run = run  # type: ignore[attr-defined]
        module.add_arguments = lambda parser: parser.add_argument("--size", type=int)  # type: ignore[attr-defined]
        module.EXAMPLE = "example:\n  optiq doctor\n"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "optiq.cli.doctor", module)

    return put


def _raises(error: BaseException) -> Runner:
    def run(args: argparse.Namespace, events: Events) -> int:
        raise error

    return run


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in edge.COMMANDS)
    assert edge.main(["--version"]) == 0
    assert capsys.readouterr().out == f"optiq {__version__}\n"
    assert edge.main([]) == 2


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from optiq.cli.main import main; main(['--help']);"
        "print([m for m in ('mlx', 'numpy', 'rich', 'mlx_lm', 'huggingface_hub') if m in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert done.stdout.splitlines()[-1] == "[]"
    assert min(seconds) < HELP_SECONDS


@pytest.mark.parametrize("name", list(edge.COMMANDS))
def test_every_command_has_help_that_ends_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert edge.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: optiq {name}")
    assert "--json" in text and "--events" in text
    example = importlib.import_module(edge.COMMANDS[name][0]).EXAMPLE
    assert example.startswith("example") and f"optiq {name}" in example
    assert text.rstrip().endswith(example.rstrip())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["covert"], "unknown command 'covert'; known: convert, plan,"),
        (["--frob"], "unknown option '--frob'; see `optiq --help`"),
        (["doctor", "--size", "x"], "argument --size: invalid int value: 'x'; see `optiq doctor --help`"),
        (["doctor", "extra"], "unrecognized arguments: extra; see `optiq doctor --help`"),
        (["doctor", "--events", "loud"], "argument --events: invalid choice: 'loud'"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], message: str, command: Callable[[Runner], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(lambda args, events: 0)
    assert edge.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"optiq: error: {message}")
    assert captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize(
    ("error", "code", "kind", "text"),
    [
        (InputError("no such\n  thing"), 2, "input", "no such thing"),
        (FormatError("bad"), 2, "format", "bad"),
        (KeyboardInterrupt(), 130, "interrupt", "interrupted; finished work is kept"),
        (edge.Terminated(signal.SIGTERM), 143, "interrupt", "interrupted; finished work is kept"),
        (OSError(28, "No space left on device"), 2, "resource", "the disk is full; make room and run again"),
    ],
)
def test_failures_are_one_line_and_json(
    error: BaseException,
    code: int,
    kind: str,
    text: str,
    command: Callable[[Runner], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(_raises(error))
    assert edge.main(["doctor", "--json"]) == code
    captured = capsys.readouterr()
    assert captured.err == f"optiq: error: {text}\n"
    assert json.loads(captured.out) == {"error": {"type": kind, "message": text, "exit_code": code}}


def test_json_events_carry_the_error(command: Callable[[Runner], None], capsys: pytest.CaptureFixture[str]) -> None:
    command(_raises(InputError("no")))
    assert edge.main(["doctor", "--events", "jsonl"]) == 2
    event = json.loads(capsys.readouterr().err)
    assert (event["type"], event["kind"], event["text"]) == ("error", "input", "no")


def test_a_bug_keeps_its_traceback_in_a_file(
    command: Callable[[Runner], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edge.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("OPTIQ_DEBUG", raising=False)
    command(_raises(ZeroDivisionError("oh")))
    assert edge.main(["doctor"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("optiq: error: internal error: ZeroDivisionError: oh; this is a bug, please report it with ")
    (file,) = tmp_path.iterdir()
    assert str(file) in line and "Traceback" in file.read_text()


SLEEPER = """
import sys, types, time
from optiq.files import building
from optiq.cli.main import main
module = types.ModuleType("optiq.cli.doctor")
module.EXAMPLE = ""
module.add_arguments = lambda parser: None
def run(args, events):
    with building(sys.argv[1]):
        print("ready", flush=True)
        time.sleep(600)
module.run = run
sys.modules["optiq.cli.doctor"] = module
sys.exit(main(["doctor"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_unwind_and_leave_nothing_half_written(tmp_path: Path, number: signal.Signals, code: int) -> None:
    words = [sys.executable, "-c", SLEEPER, str(tmp_path / "out")]
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    assert (process.returncode, list(tmp_path.iterdir())) == (code, [])
    assert errors == "optiq: error: interrupted; finished work is kept\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import sys; sys.argv = ['optiq', 'list', '--json']; from optiq.cli import list as command, main;"
        "command.run = lambda args, events: print('x' * 1_000_000) or 0; sys.exit(main.main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (141, "")


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1, 2)], ids=str)
def test_closed_standard_streams_are_no_error(closed: tuple[int, ...]) -> None:
    """A file that gets the number of a closed stream cannot be read by MLX, for which 0 is none."""

    def close() -> None:
        for number in closed:
            os.close(number)

    words = [sys.executable, "-m", "optiq.cli", "inspect", str(ROOT / "examples/tiny-qwen3.5")]
    done = subprocess.run(words, env=ENVIRONMENT, stderr=None if 2 in closed else subprocess.PIPE, preexec_fn=close, text=True)
    assert (done.returncode, done.stderr) == (0, None if 2 in closed else "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [[], ["--json"]], ids=str)
def test_a_full_disk_behind_stdout_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "optiq.cli", "models", *words]
        done = subprocess.run(command, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "optiq: error: the disk is full; make room and run again\n")


def test_bytes_that_are_no_text_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge.main(["inspect", "caf\udce9"]) == 2
    assert capsys.readouterr().err == "optiq: error: the argument 'caf\\xe9' is not UTF-8 text (byte 0xe9), expected UTF-8\n"
