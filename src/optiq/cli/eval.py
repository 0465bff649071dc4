"""`optiq eval`: what a model can do, with intervals, and whether that differs from another model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optiq.events import Events

if TYPE_CHECKING:
    from optiq.evals.prompts import Settings
    from optiq.evals.report import Model, Report
    from optiq.evals.task import Programs, Task

EXAMPLE = """\
examples:
  optiq eval examples/tiny-qwen3.5 --tasks hashhop --samples 8
  optiq eval OUT --baseline examples/tiny-qwen3.5 --tasks gsm8k,ifeval --samples 100 --data DATA
  optiq eval OUT --tasks gsm8k --option gsm8k.shots=0 --thinking
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    from optiq.cli.caches import add_cache_arguments

    parser.add_argument("model", metavar="MODEL", help="a model directory or a hub id")
    parser.add_argument("--baseline", metavar="OTHER", help="a model to compare with, on the same samples")
    parser.add_argument("--tasks", default="all", metavar="NAMES", help="tasks by comma; all of them without it")
    parser.add_argument(
        "--samples", type=int, default=None, metavar="N", help="samples per task; the protocol's number without it"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="TASK.NAME=VALUE", help="deviate from a task's protocol; may be repeated"
    )
    parser.add_argument("--data", metavar="DIR", help="directory with the tasks' data; downloaded without it")
    parser.add_argument("--served", metavar="URL", help="ask a running server (up to /v1), which calls the model MODEL")
    parser.add_argument("--reference", metavar="BF16", help="the true model: measure KL and perplexity against it, too")
    parser.add_argument("--kl-rows", type=int, default=4, metavar="N", help="documents of 512 tokens per domain for --reference")
    parser.add_argument("--card", action="store_true", help="write the table into MODEL's card (README.md)")
    parser.add_argument("--thinking", action="store_true", help="let the model reason before it answers")
    parser.add_argument(
        "--rows", type=int, default=16, metavar="N", help="requests that run at once; results do not depend on it"
    )
    parser.add_argument(
        "-o", "--output", default="evals", metavar="DIR", help="where results go, and where a stopped run goes on"
    )
    parser.add_argument("--fresh", action="store_true", help="forget results of other models or options in the output directory")
    parser.add_argument(
        "--unsafe-no-sandbox", action="store_true", help="run programs that the model writes even where nothing isolates them"
    )
    add_cache_arguments(parser)


def run(args: argparse.Namespace, events: Events) -> int:
    """Check everything, run the models one after the other, write and show the report."""
    from optiq.cli.output import show, table
    from optiq.evals import report
    from optiq.evals.data import Data
    from optiq.evals.tasks import TASKS

    _check(args)
    tasks, data, out = chosen(args), Data(args.data), Path(args.output)
    for task in tasks:
        task.samples(data)  # what is missing is said before a model is loaded
    programs = _programs(args, tasks)
    sides = [(args.model, "model")] + ([(args.baseline, "baseline")] if args.baseline else [])
    tasks = _fitted(args, [model for model, _ in sides], tasks, events)
    models = tuple(_evaluated(args, name, out / part, tasks, data, programs, events) for name, part in sides)
    whole = report.Report(models, TASKS.names())
    _write(whole, out)
    if args.card:
        from optiq.evals import card

        events.info(f"wrote the table into {card.write(Path(args.model), whole)}")
    head, lines = report.rows(whole)
    right = tuple(range(1, len(head)))
    shown = f"{table(head, lines, right=right)}\n\nreport: {out / 'report.html'} (also .md, .json; samples beside it)"
    show(args, events, whole.as_json() | {"output": str(out)}, shown)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other.

    Raises:
        InputError: which, and why.
    """
    from optiq.errors import InputError

    if args.served and (args.baseline or args.reference or args.card or args.kv_bits or args.kv_config):
        raise InputError("--served scores one model as its server runs it; --baseline, --reference, --card and --kv-* need files")
    if args.card and not (Path(args.model) / "README.md").is_file():
        raise InputError(f"--card needs a model directory with README.md, and {args.model} is none")


def _write(whole: Report, out: Path) -> None:
    """The report in its three forms."""
    from optiq import files
    from optiq.evals import page, report

    files.write_json(out / "report.json", whole.as_json())
    files.write_text(out / "report.md", f"# {_title(whole)}\n\n{report.markdown(whole)}")
    files.write_text(out / "report.html", page.page(whole, _title(whole)))


def chosen(args: argparse.Namespace) -> list[Task]:
    """The tasks that the arguments name, with their options.

    Raises:
        InputError: no such task or option.
    """
    from optiq.errors import InputError
    from optiq.evals.task import with_option
    from optiq.evals.tasks import TASKS

    names = TASKS.names() if args.tasks == "all" else tuple(args.tasks.split(","))
    tasks: dict[str, Any] = {name: TASKS[name] for name in names}
    if args.samples is not None:
        tasks = {name: with_option(task, "count", str(args.samples)) for name, task in tasks.items()}
    for text in args.option:
        place, equals, value = text.partition("=")
        name, _, option = place.partition(".")
        if not equals or not option:
            raise InputError(f"--option is {text!r}, expected TASK.NAME=VALUE, for instance gsm8k.shots=0")
        if name not in tasks:
            raise InputError(f"--option is for task {name!r}, which does not run; the tasks are {', '.join(tasks)}")
        tasks[name] = with_option(tasks[name], option, value)
    return list(tasks.values())


def _fitted(args: argparse.Namespace, models: list[str], tasks: list[Task], events: Events) -> list[Task]:
    """The tasks with questions that all models take; what is changed is said."""
    from optiq.errors import InputError
    from optiq.evals.prompts import all_take, open_prompts
    from optiq.evals.task import Fitting, options
    from optiq.models.hub import resolve

    if args.served:
        if any(getattr(task, "characters", 1) == 0 for task in tasks):
            raise InputError("hashhop.characters is 0 (as many as the model takes), which a server does not tell; give a number")
        return tasks
    takes = all_take([open_prompts(resolve(model, events=events), _settings(args)) for model in models])
    found: list[Task] = []
    for task in tasks:
        fitted = task.fitted(takes) if isinstance(task, Fitting) else task
        if fitted != task:
            before, after = options(task), options(fitted)
            changed = ", ".join(f"{name} {after[name]} for {before[name]}" for name in after if after[name] != before[name])
            events.info(f"{task.name}: {changed}, which is what the context takes")
        found.append(fitted)
    return found


def _settings(args: argparse.Namespace) -> Settings:
    from optiq.cli.caches import cache_maker
    from optiq.evals.prompts import Settings

    return Settings(thinking=args.thinking, caches=cache_maker(args))


def _programs(args: argparse.Namespace, tasks: list[Task]) -> Programs | None:
    """What runs programs that a model writes; None where no task has such.

    Raises:
        OptiqError: nothing isolates programs here.
    """
    if not any(task.runs_programs for task in tasks):
        return None
    from optiq.evals.programs import Sandboxed
    from optiq.sandbox import runner

    return Sandboxed(runner(unsafe=args.unsafe_no_sandbox))


def _evaluated(
    args: argparse.Namespace, model: str, folder: Path, tasks: list[Task], data: Any, programs: Programs | None, events: Events
) -> Model:
    """Run the tasks of one model."""
    from optiq.evals import fidelity
    from optiq.evals.generator import open_generator
    from optiq.evals.report import Model
    from optiq.evals.run import run as run_task
    from optiq.evals.served import ServedGenerator
    from optiq.models.checkpoint import Checkpoint
    from optiq.models.hub import resolve
    from optiq.models.inspect import inspect
    from optiq.quantize.workspace import model_key

    if args.served:
        about: dict[str, Any] = {"served": args.served, "model": model, "thinking": args.thinking}
        served = ServedGenerator(args.served, model, args.thinking, rows=args.rows)
        return Model(
            model, {task.name: run_task(task, data, served, folder, about, args.fresh, events, programs) for task in tasks}
        )
    path = resolve(model, events=events)
    about = {
        "model": model_key(Checkpoint.open(path)),
        "thinking": args.thinking,
        "caches": [args.kv_bits, args.kv_scheme, args.kv_config],
    }
    generator = open_generator(str(path), _settings(args), args.rows)
    results = {task.name: run_task(task, data, generator, folder, about, args.fresh, events, programs) for task in tasks}
    facts = inspect(path)
    far = None
    if args.reference:
        far = fidelity.measure(resolve(args.reference, events=events), path, args.kl_rows, events)
    return Model(label(model), results, facts.file_bytes, facts.bpw, far)


def label(model: str) -> str:
    """What reports call a model: its hub id, or the name of its directory."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _title(report: Report) -> str:
    names = [model.label for model in report.models]
    return f"{names[0]} against {names[1]}" if len(names) > 1 else names[0]
