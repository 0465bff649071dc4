"""`optiq bench`: prompt and decode speed of a model on this machine, and how they compare with earlier results."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optiq.events import Events

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLE = """\
examples:
  optiq bench examples/tiny-qwen3.5 --prompt-lengths 64,256 --generate-lengths 16 --repeats 3
  optiq bench examples/tiny-qwen3.5 --save before.json                      keep the result
  optiq bench examples/tiny-qwen3.5 --save after.json --compare before.json
  optiq bench examples/tiny-qwen3.5 --kv-bits 4 --compare before.json       packed caches against full ones
  optiq bench --kv-curve examples/tiny-qwen3.5 -o curve --repeats 1         every kind of cache over the context
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    from optiq.cli.caches import add_cache_arguments
    from optiq.generate.options import Plan

    plan = Plan()
    parser.add_argument("model", metavar="MODEL", help="a model directory or a hub id")
    parser.add_argument(
        "--prompt-lengths",
        type=_lengths,
        default=_by_comma(plan.prompt_lengths),
        metavar="N,N",
        help="tokens of the random prompts, by comma",
    )
    parser.add_argument(
        "--generate-lengths",
        type=_lengths,
        default=_by_comma(plan.generate_lengths),
        metavar="N,N",
        help="tokens generated after each, by comma",
    )
    parser.add_argument("--repeats", type=int, default=plan.repeats, metavar="N", help="measurements per row; medians are shown")
    parser.add_argument(
        "--prefill-chunk", type=int, default=plan.prefill_chunk, metavar="N", help="tokens of the prompt per step"
    )
    add_cache_arguments(parser)
    parser.add_argument(
        "--kv-curve",
        action="store_true",
        help="instead, measure every kind of key/value cache over the length of the context and write tables and a picture",
    )
    parser.add_argument(
        "-o",
        "--out",
        default=".",
        metavar="DIR",
        help="where --kv-curve writes benchmarks/kv/ and assets/; the current directory",
    )
    parser.add_argument("--kv-longest", type=int, default=None, metavar="N", help="longest context of the curve in tokens")
    parser.add_argument("--save", metavar="FILE", help="keep the result as JSON")
    parser.add_argument("--compare", nargs="+", default=[], metavar="FILE", help="earlier results: now / then, row by row")


def run(args: argparse.Namespace, events: Events) -> int:
    """Measure, keep, compare, print."""
    if args.kv_curve:
        from optiq.cli.kv_curve import run_curve

        return run_curve(args, events)
    from optiq.cli.caches import cache_maker
    from optiq.cli.output import show
    from optiq.files import write_json
    from optiq.generate.bench import KIND, SCHEMA, compare, machine, measure, read_result, weight_bytes
    from optiq.generate.options import Plan
    from optiq.models.generation import text_config
    from optiq.models.hub import resolve
    from optiq.models.load import load_modules

    plan = Plan(args.prompt_lengths, args.generate_lengths, args.repeats, args.prefill_chunk)
    caches = cache_maker(args)
    earlier = [(name, read_result(name)) for name in args.compare]
    path = resolve(args.model, events=events)
    _warn_of_length(path, plan.prompt_lengths, plan.generate_lengths, events)
    with events.stage("load the model"):
        model, _ = load_modules(path)
    caches.check(model)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "date": today(),
        "model": {"name": path.resolve().name, "weight_bytes": weight_bytes(model)},
        "machine": machine(),
        "prefill_chunk": plan.prefill_chunk,
        "repeats": plan.repeats,
        "rows": measure(model, int(text_config(path)["vocab_size"]), plan, events, caches),
    }
    if caches.text:
        result["kv"] = {"cache": caches.text}
    if args.save:
        write_json(args.save, result)
    compared = [compare(result, old, name) for name, old in earlier]
    for entry in compared:
        if entry["differs"]:
            events.warn(f"{entry['name']} differs in {', '.join(entry['differs'])}; its ratios compare unlike things")
    show(args, events, {**result, "compared": compared}, _text(result, compared))
    return 0


def _warn_of_length(path: Path, prompts: Sequence[int], generated: Sequence[int], events: Events) -> None:
    from optiq.models.generation import context_length

    length, longest = context_length(path), max(prompts) + max(generated)
    if length is not None and longest > length:
        events.warn(f"{longest} tokens (prompt and reply) are more than the {length} that this model was made for")


def _text(result: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]) -> str:
    """The table with a line about model and machine above it."""
    from optiq.cli.facts import facts
    from optiq.cli.output import table
    from optiq.files import size_text

    machine = result["machine"]
    kernels = (
        f"{machine['kernels']} on {machine['device']}, {machine['threads']} threads, mlx {machine['mlx']}, blas {machine['blas']}"
    )
    head = [
        ("model", f"{result['model']['name']}, weights {size_text(result['model']['weight_bytes'])}"),
        ("machine", f"{machine['cpu']}, {machine['system']}"),
        ("kernels", kernels),
        ("repeats", f"{result['repeats']}; median (lowest to highest)"),
    ]
    if "kv" in result:
        head.insert(1, ("cache", result["kv"]["cache"]))
    titles = ["prompt", "generate", "prompt tokens/s", "decode tokens/s", "peak memory", "cache"]
    marks = [str(number) for number in range(1, len(compared) + 1)]
    titles += [f"{what} / [{mark}]" for mark in marks for what in ("prompt", "decode")]
    rows = []
    for index, row in enumerate(result["rows"]):
        ratios = [entry["rows"][index][rate] for entry in compared for rate in ("prompt_tokens_per_s", "decode_tokens_per_s")]
        rows.append(
            [
                str(row["prompt_tokens"]), str(row["generate_tokens"]),
                _rate(row["prompt_tokens_per_s"]), _rate(row["decode_tokens_per_s"]),
                size_text(row["peak_memory_bytes"]), size_text(row["cache_bytes"]),
                *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios),
            ]
        )  # fmt: skip
    parts = [facts(head), table(titles, rows, right=range(len(titles)))]
    if compared:
        parts.append("\n".join(f"[{mark}] {entry['name']}" for mark, entry in zip(marks, compared, strict=True)))
    return "\n\n".join(parts)


def _rate(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "-"
    return f"{spread['median']:.1f} ({spread['low']:.1f} to {spread['high']:.1f})"


def _lengths(text: str) -> tuple[int, ...]:
    """Whole numbers by comma."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected whole numbers by comma, for instance 128,512") from None


def _by_comma(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def today() -> str:
    """The time of a result, UTC."""
    import datetime

    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
