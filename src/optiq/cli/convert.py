"""`optiq convert`: quantize a model to a budget, and measure what it cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from optiq.events import Events
from optiq.files import user_path

EXAMPLE = """\
example:
  optiq convert examples/tiny-qwen3.5 --target-bpw 5.0 --candidate-bits 4,8 -o out

The budget is a ceiling for codes, scales and biases of every quantizable tensor, embeddings and head included.
A killed run continues when the same command is given again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("model", metavar="MODEL", help="a checkpoint directory, or a hub id such as Qwen/Qwen3.5-0.8B")
    parser.add_argument("-o", "--output", metavar="OUT", help="directory to write (default: optiq_output/<model>)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--target-bpw", type=float, metavar="B", help="bits per weight, scales and biases counted (default: 5.0)")
    budget.add_argument("--target-gb", type=float, metavar="GB", help="size of all model files, GB = 1e9 bytes")
    budget.add_argument("--like", metavar="DIR", help="the bytes that model*.safetensors of another MLX directory take")
    parser.add_argument(
        "--candidate-bits",
        default="2,3,4,5,6,8",
        metavar="LIST",
        help="widths to choose from; 16 is bf16 (default: %(default)s)",
    )
    parser.add_argument(
        "--group-sizes", default="32,64,128", metavar="LIST", help="group sizes to choose from (default: %(default)s)"
    )
    parser.add_argument("--sensitivity", default="fisher", metavar="METHOD", help="fisher, kl or static (default: %(default)s)")
    parser.add_argument("--encoder", default="gptq", metavar="NAME", help="rtn, search or gptq (default: %(default)s)")
    parser.add_argument("--no-refit", action="store_true", help="gptq without the joint refit of scales, biases and codes")
    parser.add_argument("--reference", default="auto", metavar="MODE", help="auto, bf16 or uniform_4bit (default: %(default)s)")
    parser.add_argument(
        "--calibration-mix",
        metavar="FILE",
        help="own calibration text, JSONL of text or messages (default: six domains)",
    )
    parser.add_argument("--calibration-samples", type=int, default=40, metavar="N", help="rows per domain (default: %(default)s)")
    parser.add_argument("--calibration-length", type=int, default=256, metavar="L", help="tokens per row (default: %(default)s)")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN=BITS",
        help="pin tensors to a width; 16 leaves them in bf16",
    )
    parser.add_argument(
        "--baselines", action="store_true", help="also write stock uniform models of the nearest sizes, and compare"
    )
    parser.add_argument(
        "--measure-only", action="store_true", help="write nothing but OUT/sensitivity.json, for `optiq plan` and the workbench"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not measure the KL of the result")
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="continue an interrupted run (default)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--work", metavar="DIR", help="keep the stages' files here, for later runs (default: beside OUT, removed)"
    )


def run(args: argparse.Namespace, events: Events) -> int:
    """Convert, then print what was made and what it measured."""
    from optiq.cli.output import show
    from optiq.quantize import pipeline

    done = pipeline.run(settings(args), events)
    if args.measure_only:
        measured = done.plan
        text = f"{measured['tensors']} tensors of {measured['base_model']} measured: {measured['sensitivity']}"
        show(args, events, {"output": str(done.path), **measured}, text)
        return 0
    show(args, events, {"output": str(done.path), **done.plan}, report(done.path, done.plan))
    return 0


def settings(args: argparse.Namespace) -> Any:
    """The arguments as `Settings`."""
    from optiq.plan.options import parse_bits, parse_group_sizes, parse_keep
    from optiq.quantize.settings import Settings

    return Settings(
        model=args.model,
        output=user_path(args.output) if args.output else _default_output(args.model),
        budget=_budget(args),
        candidate_bits=parse_bits(args.candidate_bits),
        group_sizes=parse_group_sizes(args.group_sizes),
        sensitivity=args.sensitivity,
        encoder=args.encoder,
        refit=not args.no_refit,
        reference=args.reference,
        calibration_mix=user_path(args.calibration_mix) if args.calibration_mix else None,
        calibration_samples=args.calibration_samples,
        calibration_length=args.calibration_length,
        keep=tuple(parse_keep(text) for text in args.keep),
        baselines=args.baselines,
        verify=not args.no_verify,
        resume=args.resume,
        overwrite=args.overwrite,
        measure_only=args.measure_only,
        work=user_path(args.work) if args.work else None,
    )


def _default_output(model: str) -> Path:
    """``optiq_output/`` and the hub id, or the name of the local directory."""
    place = user_path(model)
    name = place.resolve().name if place.is_dir() else model.strip("/")
    return Path("optiq_output") / name.replace("/", "_").replace(".", "_")


def _budget(args: argparse.Namespace) -> Any:
    from optiq.models.shards import model_bytes
    from optiq.plan.budget import Budget

    if args.like is not None:
        return Budget("like", model_bytes(user_path(args.like)))
    if args.target_gb is not None:
        return Budget("gb", args.target_gb)
    return Budget("bpw", 5.0 if args.target_bpw is None else args.target_bpw)


def report(path: Path, plan: dict[str, Any]) -> str:
    """What a person reads at the end."""
    from collections import Counter

    from optiq.cli.facts import facts
    from optiq.files import size_text

    widths = Counter(choice["bits"] for choice in plan["choices"])
    rows = [
        ("written", str(path)),
        ("size", f"{size_text(plan['bytes']['total_files'])}, {plan['bpw']:.3f} bits per weight"),
        ("tensors", ", ".join(f"{count} at {bits} bits" for bits, count in sorted(widths.items()))),
    ]
    rows += [(f"beside it: {name}", size_text(size)) for name, size in plan["bytes"]["side"].items()]
    if plan["predicted_kl"] is not None:
        rows.append(("KL predicted", f"{plan['predicted_kl']:.5f} nats per token"))
    measured = plan["measured"]
    if measured:
        low, high = measured["ci95"]
        rows += [
            ("KL measured", f"{measured['mean']:.5f} nats per token, 95 % interval {low:.5f} to {high:.5f}"),
            ("", f"median {measured['median']:.5f}, p95 {measured['p95']:.5f}, p99 {measured['p99']:.5f}"),
            ("same top token", f"{100 * measured['top1']:.2f} %"),
            (
                "measured on",
                f"{measured['documents']} held-out documents, {measured['tokens']} tokens, against {measured['reference']}",
            ),
        ]
    for row in plan["baselines"]:
        rows.append((row["name"], f"{size_text(row['bytes'])}, {row['bpw']:.3f} bits per weight, KL {row['kl_mean']:.5f}"))
    rows += [("note", note) for note in plan["notes"]]
    return facts(rows)
