"""`optiq serve`: a model over HTTP, for OpenAI's and Anthropic's clients."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optiq.events import Events
from optiq.files import user_path

if TYPE_CHECKING:
    from optiq.serve.http.agent import Python
    from optiq.serve.http.serving import Setup
    from optiq.serve.supervisor import Plan, Supervisor

EXAMPLE = """\
examples:
  optiq serve examples/tiny-qwen3.5
  optiq serve --model examples/tiny-qwen3.5 --mtp --max-tokens 32768 --temp 0.6 --top-p 0.95
  optiq serve examples/tiny-qwen3.5 --kv-bits 4 --adapter sql=./adapters/sql --alias gpt-local
  optiq serve examples/tiny-qwen3.5 --host 0.0.0.0 --api-key SECRET      for other machines
"""
KEY_VARIABLE = "OPTIQ_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a model directory or a hub id")
    parser.add_argument("--model", dest="named", metavar="MODEL", help="the same, as other servers spell it")
    _add_address(parser)
    _add_replies(parser)
    _add_engine(parser)
    _add_tools(parser)


def _add_tools(parser: argparse.ArgumentParser) -> None:
    """What the server itself may run for requests."""
    parser.add_argument("--tools", choices=["python"], help="requests may ask for this tool; programs run in a sandbox")
    parser.add_argument("--tool-turns", type=int, default=8, metavar="N", help="rounds of programs in one request")
    parser.add_argument("--tool-s", type=float, default=30.0, metavar="S", help="of one run; a request has four times as long")
    parser.add_argument("--unsafe-no-sandbox", action="store_true", help="run programs with your own rights, without a sandbox")


def _add_address(parser: argparse.ArgumentParser) -> None:
    """Who may ask, and where."""
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="listen here; beyond this machine a key is needed")
    parser.add_argument("--port", type=int, default=8080, metavar="N", help="listen on this port; 0 for a free one")
    parser.add_argument("--api-key", metavar="KEY", help=f"every request has to carry it; without it {KEY_VARIABLE}, or none")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a further name of this server; * for any"
    )
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="a page beyond this machine that may ask; * for any"
    )
    parser.add_argument("--alias", action="append", default=[], metavar="NAME", help="a further name of the model; * for any")
    parser.add_argument("--max-body-mb", type=float, default=32.0, metavar="MB", help="refuse larger requests")
    parser.add_argument("--drain-s", type=float, default=60.0, metavar="S", help="when it ends, let requests run on for so long")


def _add_replies(parser: argparse.ArgumentParser) -> None:
    """How replies are made where requests do not say."""
    from optiq.generate.sampling import SETTINGS
    from optiq.models.families import USES
    from optiq.serve.http.context import MAX_REPLY_TOKENS

    parser.add_argument(
        "--max-tokens", type=int, default=MAX_REPLY_TOKENS, metavar="N", help="of a reply where a request does not say"
    )
    for setting in SETTINGS:
        kind = int if setting.whole else float
        parser.add_argument(setting.flag, dest=setting.name, type=kind, default=None, metavar="X", help=setting.help)
    parser.add_argument("--preset", choices=USES, default=None, help="the family guide's settings for a use")
    parser.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="reason, or do not, where a request does not say; without it the template's own default",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    """What the engine has and may take."""
    from optiq.cli.caches import add_cache_arguments
    from optiq.generate.options import PREFILL_CHUNK

    parser.add_argument(
        "--mtp", action="store_true", help="guess tokens ahead with the model's own MTP head; the text is the same"
    )
    add_cache_arguments(parser)
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a LoRA adapter that requests can name; may be repeated",
    )
    parser.add_argument("--adapter-dir", metavar="DIR", help="adapters in it can be mounted by their folder's name while it runs")
    parser.add_argument("--models-dir", metavar="DIR", help="models in it are loaded when a request names them, one at a time")
    parser.add_argument(
        "--allow-model", action="append", default=[], metavar="NAME", help="of --models-dir only this one; may be repeated"
    )
    parser.add_argument(
        "--idle-s", type=float, default=0.0, metavar="S", help="end the engine after so long without requests; 0 never"
    )
    parser.add_argument(
        "--context", type=int, default=0, metavar="N", help="tokens of prompt and reply; 0 for what the model has"
    )
    parser.add_argument("--max-concurrent", type=int, default=16, metavar="N", help="requests that run at once")
    parser.add_argument("--max-queue", type=int, default=256, metavar="N", help="requests that wait; more are refused")
    parser.add_argument("--prefill-chunk", type=int, default=PREFILL_CHUNK, metavar="N", help="tokens of a prompt per step")
    parser.add_argument("--memory-gb", type=float, default=0.0, metavar="GB", help="for caches; 0 for half of what is free")
    parser.add_argument(
        "--prefix-gb", type=float, default=None, metavar="GB", help="of it, for prompts read before; half without it"
    )


def run(args: argparse.Namespace, events: Events) -> int:
    """Check, load, listen; until a signal."""
    import asyncio
    import sys

    from optiq.cli.output import show
    from optiq.serve.http.serving import serve

    setup = _setup(args, events)
    _log_to(events)

    def up(url: str, supervisor: Supervisor) -> None:
        data = {"url": url, "model": setup.name, "pid": os.getpid(), "engine_pid": supervisor.pid}
        show(args, events, data, f"{setup.name} is served at {url} (loaded in {supervisor.load_s:.1f} s; Ctrl-C ends)")
        sys.stdout.flush()

    heard = asyncio.run(serve(setup, up))
    return 128 + heard if heard else 0


def _setup(args: argparse.Namespace, events: Events) -> Setup:
    """What the flags ask for.

    Raises:
        InputError: a flag is missing, out of range, or contradicts another.
    """
    from dataclasses import asdict

    from optiq.cli.caches import cache_options
    from optiq.errors import InputError
    from optiq.generate.sampling import SETTINGS, check
    from optiq.kv.options import Maker
    from optiq.models.families import family_of, preset
    from optiq.models.generation import text_config
    from optiq.models.hub import resolve
    from optiq.serve.http.context import Limits, Places
    from optiq.serve.http.facts import Choices
    from optiq.serve.http.guard import Access
    from optiq.serve.http.serving import Setup

    if (args.model is None) == (args.named is None):
        raise InputError("give one model: optiq serve MODEL, or --model MODEL")
    check(vars(args))
    for name in ("max_tokens", "max_concurrent", "max_queue"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected a whole number of at least 1")
    for name in ("context", "memory_gb", "prefix_gb", "drain_s", "max_body_mb", "idle_s"):
        if (getattr(args, name) or 0) < 0:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name):g}, expected at least 0")
    key = os.environ.get(KEY_VARIABLE, "") if args.api_key is None else args.api_key
    access = Access(args.host, key, tuple(args.allow_host), tuple(args.allow_origin))
    caches = cache_options(args)
    path = resolve(args.model or args.named, events=events)
    preset(family_of(text_config(path)), thinking=True, use=args.preset)  # refuses a use that nobody has settings for
    settings = {setting.name: getattr(args, setting.name) for setting in SETTINGS if getattr(args, setting.name) is not None}
    choices = Choices(settings, args.preset, args.max_tokens, args.thinking, Maker(caches.text), args.mtp, args.context)
    plan = _plan(args, path, asdict(caches))
    adapters, models = _folder(args, "adapter_dir"), _folder(args, "models_dir")
    if models is not None and args.kv_config is not None:
        raise InputError("--kv-config is for one model, and --models-dir serves several; use --kv-bits, or serve one model")
    if args.allow_model and models is None:
        raise InputError("--allow-model chooses among the models of --models-dir, which is not given")
    return Setup(
        path,
        _name_of(args.model or args.named, path),
        plan,
        access,
        args.port,
        choices,
        tuple(args.alias),
        Places(plan.adapters, adapters),
        Limits(body_bytes=round(args.max_body_mb * 1e6)),
        drain_s=args.drain_s,
        models=models,
        allowed=tuple(args.allow_model),
        idle_s=args.idle_s,
        python=_python(args, events),
    )


def _python(args: argparse.Namespace, events: Events) -> Python | None:
    """What requests may do with Python.

    Raises:
        InputError: a limit out of range.
        ResourceError: no sandbox works here, and nobody said to do without.
    """
    from optiq.errors import InputError
    from optiq.sandbox import Policy, runner
    from optiq.serve.http.agent import Python

    if args.tools is None:
        return None
    if args.tool_turns < 1 or args.tool_s <= 0:
        raise InputError(f"--tool-turns is {args.tool_turns} and --tool-s {args.tool_s:g}, expected at least 1 and more than 0")
    found = runner(unsafe=args.unsafe_no_sandbox)
    events.info(f"programs of the python tool run in: {found.name}")
    policy = Policy(seconds=args.tool_s, cpu_seconds=args.tool_s, output_bytes=64 << 10)
    return Python(found, policy, args.tool_turns, 4 * args.tool_s)


def _folder(args: argparse.Namespace, name: str) -> Path | None:
    """A directory that a flag names.

    Raises:
        InputError: it is none.
    """
    from optiq.errors import InputError

    text = getattr(args, name)
    if text is None:
        return None
    path = user_path(text)
    if not path.is_dir():
        raise InputError(f"--{name.replace('_', '-')} {text} is not a directory; give one that exists")
    return path


def _plan(args: argparse.Namespace, path: Path, caches: dict[str, Any]) -> Plan:
    """The engine's process."""
    from optiq.models.generation import context_length
    from optiq.serve.supervisor import Plan

    options: dict[str, Any] = {
        "model": str(path.absolute()),
        "caches": caches,
        "mtp": args.mtp,
        "policy": {"max_rows": args.max_concurrent, "max_waiting": args.max_queue, "chunk": args.prefill_chunk},
        "context": args.context or context_length(path) or 0,
        "memory_bytes": round(args.memory_gb * 1e9),
        "prefix_bytes": None if args.prefix_gb is None else round(args.prefix_gb * 1e9),
    }
    return Plan(options, _adapters(args), args.max_concurrent + args.max_queue)


def _adapters(args: argparse.Namespace) -> dict[str, str]:
    """Directories of adapters by name.

    Raises:
        InputError: a name twice, or one that a request could not carry.
    """
    from optiq.errors import InputError
    from optiq.serve.http.context import ADAPTER_NAME

    found: dict[str, str] = {}
    for text in args.adapter:
        name, equals, folder = text.partition("=")
        path = user_path(folder if equals else text).absolute()
        name = name if equals else path.name
        if not ADAPTER_NAME.fullmatch(name):
            raise InputError(
                f"--adapter {text}: the name {name!r} has other characters than letters, digits, '.', '_', '-'; NAME=DIR"
            )
        if name in found:
            raise InputError(f"--adapter {text}: the name {name!r} is taken by {found[name]}; give it another one: NAME=DIR")
        found[name] = str(path)
    return found


def _name_of(asked: str, path: Path) -> str:
    """How clients name a model: its hub id, or its folder's name."""
    return path.absolute().name if user_path(asked).is_dir() else asked


def _log_to(events: Events) -> None:
    """What the server has to say goes where the command's remarks go."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told = self.format(record)
            if record.levelno >= logging.WARNING:
                events.warn(told)
            else:
                events.info(told)

    logger = logging.getLogger("optiq.serve")
    logger.handlers, logger.propagate = [Handler()], False
    logger.setLevel(logging.INFO)
