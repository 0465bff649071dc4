"""The entry point: finds the command, parses its arguments, and turns every way to fail into a line and an exit code.

Only the chosen command's module is imported, so `optiq --help` costs an interpreter start. Exit codes: 0 done, 2 the
user can mend it, 1 a bug (the traceback goes to a file), 130 interrupted, 143 terminated, 141 the reader went away.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from optiq import __version__
from optiq.cli.output import printable
from optiq.errors import EXIT_BUG, EXIT_INTERRUPT, EXIT_OK, EXIT_USER, InputError, OptiqError, ResourceError
from optiq.events import MODES, Events, open_events
from optiq.registry import Table

EXIT_BROKEN_PIPE = 141
# What the kernel says when a disk or a quota is full.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

COMMANDS: Table[tuple[str, str]] = Table("command")
COMMANDS.add("convert", ("optiq.cli.convert", "quantize a model to a budget, and measure what it cost"))
COMMANDS.add("plan", ("optiq.cli.plan", "solve again from a saved sensitivity table"))
COMMANDS.add("kv-cache", ("optiq.cli.kv_cache", "choose the bits of key/value caches by what they cost"))
COMMANDS.add("lora", ("optiq.cli.lora", "train adapters on a model, quantized or not, and put them together"))
COMMANDS.add("generate", ("optiq.cli.generate", "write text with a model: one reply, or a conversation"))
COMMANDS.add("serve", ("optiq.cli.serve", "serve a model to OpenAI's and Anthropic's clients"))
COMMANDS.add("lab", ("optiq.cli.lab", "open the workbench in the browser"))
COMMANDS.add("bench", ("optiq.cli.bench", "measure how fast a model reads and writes on this machine"))
COMMANDS.add("eval", ("optiq.cli.eval", "score a model on six tasks, with intervals and paired tests"))
COMMANDS.add("compare", ("optiq.cli.compare", "put models beside one of them: size, divergence, texts, flips"))
COMMANDS.add("inspect", ("optiq.cli.inspect", "show the bits and bytes of a model directory"))
COMMANDS.add("models", ("optiq.cli.models", "show the reference models, and which of them fit this machine"))
COMMANDS.add("pull", ("optiq.cli.pull", "download a model, with progress and resume"))
COMMANDS.add("rm", ("optiq.cli.rm", "delete a model from the cache or a model directory"))
COMMANDS.add("list", ("optiq.cli.list", "list the models on this disk"))
COMMANDS.add("doctor", ("optiq.cli.doctor", "check this machine: MLX, BLAS, speed, disk, hub"))

EXAMPLE = """\
example:
  optiq convert examples/tiny-qwen3.5 --target-bpw 5.0 --candidate-bits 4,8 -o out
  optiq inspect out
"""


class Terminated(KeyboardInterrupt):
    """A signal that asks the process to end; unwinds like Ctrl-C, so that temporaries are removed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _Parser(argparse.ArgumentParser):
    """Argument errors become our own, so that they look like all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; nothing but `SystemExit` from a signal gets past it."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    _listen()
    _open_streams()
    events: Events | None = None
    try:
        _check_text(words)
        if not words or words[0] in ("-h", "--help", "help", "-V", "--version"):
            return _about(words)
        command = words[0]
        if command.startswith("-"):
            raise InputError(f"unknown option {command!r}; see `optiq --help`")
        module = importlib.import_module(COMMANDS[command][0])
        parser = _command_parser(command)
        module.add_arguments(parser)
        parser.epilog = module.EXAMPLE
        args = parser.parse_args(words[1:])
        events = open_events(args.events)
        code = int(module.run(args, events))
        sys.stdout.flush()
        return code
    except SystemExit as done:  # argparse's --help
        return int(done.code or 0)
    except OptiqError as error:
        return _failed(error.kind, str(error), EXIT_USER, events, as_json)
    except KeyboardInterrupt as stop:
        code = 128 + stop.number if isinstance(stop, Terminated) else EXIT_INTERRUPT
        return _failed("interrupt", "interrupted; finished work is kept", code, events, as_json)
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            text = f"the disk is full{f' at {error.filename}' if error.filename else ''}; make room and run again"
            return _failed(ResourceError().kind, text, EXIT_USER, events, as_json)
        return _failed("bug", _bug_text(error), EXIT_BUG, events, as_json)
    finally:
        if events is not None:
            events.close()


def _about(words: Sequence[str]) -> int:
    """The program's own help and version; ``optiq help COMMAND`` is left to the command."""
    if words and words[0] == "help" and len(words) > 1:
        return main([words[1], "--help"])
    if words and words[0] in ("-V", "--version"):
        print(f"optiq {__version__}")
        return EXIT_OK
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    print(
        "usage: optiq COMMAND [arguments]\n\n"
        "The best language model that fits a memory budget, in the stock MLX format, with a measured proof.\n\n"
        f"commands:\n{rows}\n\n"
        "  optiq COMMAND --help shows a command's arguments; every command takes --json and --events.\n\n"
        f"{EXAMPLE}",
        end="",
    )
    return EXIT_OK if words else EXIT_USER


def _command_parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"optiq {command}",
        description=COMMANDS[command][1][0].upper() + COMMANDS[command][1][1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument(
        "--events",
        choices=MODES,
        default="auto",
        help="progress on stderr: bars on a terminal and lines elsewhere, lines, JSON lines, or warnings alone",
    )
    return parser


def _failed(kind: str, text: str, code: int, events: Events | None, as_json: bool) -> int:
    """Say on stderr (and as JSON on stdout) why the command ends, and return its exit code."""
    line = " ".join(text.split())
    try:
        (events or open_events("quiet")).error(kind, line)
        if as_json:
            print(printable(json.dumps({"error": {"type": kind, "message": line, "exit_code": code}}, ensure_ascii=False)))
            sys.stdout.flush()
    except OSError:  # nobody reads, or the disk is full
        _abandon_stdout()
    return code


def _bug_text(error: Exception) -> str:
    """One line about a bug, with the traceback in a file (on stderr with OPTIQ_DEBUG=1)."""
    first = f"internal error: {type(error).__name__}: {error}"
    if os.environ.get("OPTIQ_DEBUG"):
        traceback.print_exception(error)
        return first
    try:
        with tempfile.NamedTemporaryFile("w", prefix="optiq-traceback-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
        return first
    return f"{first}; this is a bug, please report it with {file.name}"


def _open_streams() -> None:
    """Open standard streams that were closed before the start on nothing, so that no file gets one of their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (it stays open)


def _check_text(words: Sequence[str]) -> None:
    """Refuse arguments whose bytes are no text.

    Raises:
        InputError: an argument is not UTF-8.
    """
    for word in words:
        data = word.encode(errors="surrogateescape")
        try:
            data.decode()
        except UnicodeDecodeError as error:
            shown = data.decode(errors="backslashreplace")
            raise InputError(
                f"the argument '{shown}' is not UTF-8 text (byte {data[error.start]:#04x}), expected UTF-8"
            ) from None


def _listen() -> None:
    """End on SIGTERM and SIGHUP as on Ctrl-C; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_DFL:
            signal.signal(getattr(signal, name), stop)


def _abandon_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain about the closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
