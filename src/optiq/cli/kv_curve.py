"""`optiq bench --kv-curve`: every kind of key/value cache over the length of the context."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from optiq.errors import InputError
from optiq.events import Events


def run_curve(args: argparse.Namespace, events: Events) -> int:
    """Measure, write the files, print the table."""
    from optiq.cli.bench import today
    from optiq.cli.output import show
    from optiq.generate import curve, curve_files
    from optiq.generate.bench import machine, weight_bytes
    from optiq.models.generation import context_length
    from optiq.models.hub import resolve
    from optiq.models.load import load

    _refuse_others(args)
    path = resolve(args.model, events=events)
    found = curve.lengths(context_length(path), args.kv_longest)
    if not found:
        raise InputError(f"--kv-longest is {args.kv_longest}, expected at least {curve.BASE}, the shortest prompt of the curve")
    plan = curve.CurvePlan(found, max(args.generate_lengths), args.repeats, args.prefill_chunk)
    with events.stage("load the model"):
        model, tokenizer = load(path)
    samples = curve.measure(model, _text(tokenizer, max(found)), plan, events)
    rows = curve.summary(samples)
    about: dict[str, Any] = {
        "schema": 1,
        "kind": "optiq-kv-curve",
        "date": today(),
        "command": f"optiq bench --kv-curve MODEL --repeats {plan.repeats} --generate-lengths {plan.generate}",
        "model": {"name": path.resolve().name, "weight_bytes": weight_bytes(model)},
        "machine": machine(),
        "lengths": plan.lengths,
        "generate": plan.generate,
        "prefill_chunk": plan.prefill_chunk,
    }
    written = curve_files.write(Path(args.out), samples, rows, about)
    show(args, events, {**about, "rows": rows, "files": [str(name) for name in written]}, _table(rows, args.out))
    return 0


def _refuse_others(args: argparse.Namespace) -> None:
    """Flags that mean nothing beside a curve."""
    for flag in ("kv_bits", "kv_scheme", "kv_config", "save", "compare"):
        if getattr(args, flag):
            raise InputError(f"--kv-curve measures every kind of cache; leave --{flag.replace('_', '-')} out")


def _text(tokenizer: Any, count: int) -> list[int]:
    """The packaged development text, as often as it takes."""
    from optiq.generate.curve import repeated
    from optiq.measure.text import samples
    from optiq.measure.tokens import render_sample

    ids: list[int] = []
    for sample in samples("dev"):
        ids += tokenizer.encode(render_sample(sample, tokenizer)[0])
        if len(ids) >= count:
            break
    return repeated(ids, count)


def _table(rows: list[dict[str, Any]], out: str) -> str:
    from optiq.cli.output import table

    titles = ["context", "cache", "decode tokens/s", "over 16-bit", "MB", "KL, nats/token"]
    lines = [
        [
            f"{row['prompt_tokens']:.0f}", row["kind"], f"{row['decode_tokens_per_s']:.1f}", f"{row['speed_over_fp16']:.2f}x",
            f"{row['cache_bytes'] / 1e6:.3f}", f"{row['kl_nats']:.2e}",
        ]
        for row in rows
    ]  # fmt: skip
    return f"{table(titles, lines, right=(0, 2, 3, 4, 5))}\n\nwritten below {out}"
