"""`optiq plan`: solve again from a saved sensitivity table, for another budget or other candidates, in seconds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optiq.events import Events
from optiq.files import user_path

if TYPE_CHECKING:
    from optiq.plan.budget import Budget
    from optiq.plan.options import Keep
    from optiq.plan.table import Table
    from optiq.plan.types import Item, Plan

EXAMPLE = """\
examples:
  optiq plan OUT --target-bpw 4.5                    what would 4.5 bits per weight cost?
  optiq plan OUT --like OTHER --keep 'lm_head=8'     spend what OTHER spends, head at 8 bits
  optiq plan OUT --curve curve.svg                   size against predicted divergence, picture and curve.json
"""

CURVE_POINTS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("source", metavar="DIR|FILE", help="a directory that convert wrote, or its sensitivity.json")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--target-bpw", type=float, metavar="B", help="bits per weight, scales and biases counted (a ceiling)")
    budget.add_argument("--target-gb", type=float, metavar="GB", help="size of all model files, GB = 1e9 bytes")
    budget.add_argument("--like", metavar="DIR", help="the bytes that model*.safetensors of DIR take")
    parser.add_argument("--candidate-bits", metavar="LIST", help="allow only these widths, e.g. 4,8 (default: all measured)")
    parser.add_argument("--group-sizes", metavar="LIST", help="allow only these group sizes (default: all measured)")
    parser.add_argument("--keep", action="append", default=[], metavar="PATTERN=BITS", help="pin tensors; 16 leaves them in bf16")
    parser.add_argument(
        "--curve", nargs="?", const="", metavar="FILE",
        help="the whole Pareto curve of size against predicted KL; FILE is .json, or .png/.svg with a .json beside it",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", help="write the plan as JSON")


def run(args: argparse.Namespace, events: Events) -> int:
    """Solve, print, and write what was asked for."""
    from optiq import files
    from optiq.cli.output import show
    from optiq.plan import options, table
    from optiq.plan.allocate import allocate, curve

    if args.curve:
        _check_curve_name(args.curve)
    source = _with_fixed_bytes(table.load(args.source), args.source)
    bits = options.parse_bits(args.candidate_bits) if args.candidate_bits else None
    sizes = options.parse_group_sizes(args.group_sizes) if args.group_sizes else None
    keeps = [options.parse_keep(text) for text in args.keep]
    items, notes = _narrowed(source, keeps, bits, sizes)
    notes += options.fallback_notes(items)
    budget = _budget(args, source)
    params = sum(item.params for item in items)
    with events.stage("solve"):
        plan = allocate(items, budget.quantized_bytes(params, source.fixed_bytes, source.header_bytes))
    data = _plan_json(plan, items, budget, source, notes)
    if args.output:
        files.write_json(args.output, data)
    if args.curve is not None:
        with events.stage("curve"):
            data["curve"] = _curve_json(curve(items, CURVE_POINTS), source)
        if args.curve:
            _write_curve(args.curve, data["curve"], plan)
    show(args, events, data, _text(data, plan, args.curve == ""))
    return 0


def _narrowed(
    source: Table, keeps: list[Keep], bits: tuple[int, ...] | None, sizes: tuple[int, ...] | None
) -> tuple[list[Item], list[str]]:
    """Pinned tensors take their width from all that was measured, the others from the allowed candidates."""
    from optiq.plan.options import apply_keeps, restrict

    pinned, notes = apply_keeps(source.items, keeps)
    free = [item for item in pinned if not any(keep.matches(item.name) for keep in keeps)]
    allowed = {item.name: item for item in restrict(free, bits, sizes)}
    return [allowed.get(item.name, item) for item in pinned], notes


def _with_fixed_bytes(source: Table, place: str) -> Table:
    """Take what no plan changes (norms, headers) from plan.json where the table does not say it."""
    from dataclasses import replace

    from optiq.plan.table import read_plan

    path = Path(place)
    plan = read_plan(path if path.is_dir() else path.parent)
    sizes = (plan or {}).get("bytes", {})
    found = {"fixed_bytes": sizes.get("fixed", 0), "header_bytes": sizes.get("header", 0)} if sizes else {}
    old_budget = {"budget": plan["budget"]} if plan and "budget" in plan else {}
    return replace(source, facts={**found, **old_budget, **source.facts})


def _budget(args: argparse.Namespace, source: Table) -> Budget:
    from optiq.errors import InputError
    from optiq.models.shards import model_bytes
    from optiq.plan.budget import DEFAULT_BPW, Budget

    if args.target_bpw is not None:
        return Budget("bpw", args.target_bpw)
    if args.target_gb is None and args.like is None:
        old = source.facts.get("budget", {})
        return Budget("bpw", float(old["value"])) if old.get("kind") == "bpw" else Budget("bpw", DEFAULT_BPW)
    if not source.fixed_bytes:
        raise InputError(
            f"{args.source} does not say how many bytes norms and headers take, which --target-gb and --like need; "
            f"give the converted directory, or --target-bpw"
        )
    if args.target_gb is not None:
        return Budget("gb", args.target_gb)
    return Budget("like", model_bytes(user_path(args.like)))


def _plan_json(plan: Plan, items: list[Item], budget: Budget, source: Table, notes: list[str]) -> dict[str, Any]:
    from optiq.plan.table import choices_json

    fixed, header = source.fixed_bytes, source.header_bytes
    sizes = {"quantized": plan.bytes, "fixed": fixed, "header": header}
    sizes |= {"total_files": plan.bytes + fixed + header} if fixed else {}
    return {
        "schema": 1,
        "base_model": source.facts.get("base_model"),
        "budget": {"kind": budget.kind, "value": budget.value, "bytes": plan.budget_bytes},
        "bytes": sizes,
        "bpw": plan.bpw,
        "params": plan.params,
        "predicted_kl": plan.damage,
        "gap_nats": plan.gap,
        "choices": choices_json(plan, items, {}),
        "measured": None,
        "baselines": [],
        "notes": notes,
    }


def _curve_json(plans: list[Plan], source: Table) -> dict[str, Any]:
    rest = source.fixed_bytes + source.header_bytes
    points = [
        {"bytes": plan.bytes, "total_files": plan.bytes + rest, "bpw": plan.bpw, "predicted_kl": plan.damage}
        if source.fixed_bytes
        else {"bytes": plan.bytes, "bpw": plan.bpw, "predicted_kl": plan.damage}
        for plan in plans
    ]
    return {"schema": 1, "base_model": source.facts.get("base_model"), "points": points}


def _check_curve_name(name: str) -> None:
    if Path(name).suffix.lower() != ".json":
        from optiq.quantize.picture import check_format

        check_format(name)


def _write_curve(name: str, curve: dict[str, Any], plan: Plan) -> None:
    from optiq import files

    path = Path(name)
    files.write_json(path.with_suffix(".json"), curve)
    if path.suffix.lower() == ".json":
        return
    from optiq.quantize import picture

    points = [(point["bpw"], point["predicted_kl"]) for point in curve["points"]]
    mark = (f"{plan.bpw:.2f} bits: {plan.damage:.3g} nats", plan.bpw, plan.damage)
    base = curve["base_model"] or "model"
    picture.pareto(path, points, f"{Path(base).name}: size against predicted divergence", [mark])


def _text(data: dict[str, Any], plan: Plan, with_curve: bool) -> str:
    from optiq.cli.facts import facts
    from optiq.cli.output import table
    from optiq.files import size_text

    total = data["bytes"].get("total_files")
    spent = 100 * plan.bytes / plan.budget_bytes
    head = facts(
        [
            ("model", str(data["base_model"] or "unknown")),
            ("budget", f"{_budget_text(data['budget'])}: {plan.budget_bytes:,} bytes for codes, scales and biases"),
            ("plan", f"{plan.bpw:.4f} bits per weight, {plan.bytes:,} bytes ({spent:.2f} % of the budget)"),
            *([("model files", size_text(total))] if total else []),
            ("predicted KL", f"{plan.damage:.6g} nats per token" + (f" (within {plan.gap:.1g})" if plan.gap else "")),
        ]
    )
    parts = [head, table(("bits", "layers", "weights", "bytes", "predicted KL"), _rows(data["choices"]), range(5))]
    parts += ["\n".join(f"note: {note}" for note in data["notes"])] if data["notes"] else []
    if with_curve:
        points = data["curve"]["points"]
        rows = [(f"{p['bpw']:.3f}", size_text(p.get("total_files", p["bytes"])), f"{p['predicted_kl']:.5g}") for p in points]
        parts.append(table(("bits per weight", "size", "predicted KL"), rows, range(3)))
    return "\n\n".join(parts)


def _rows(choices: list[dict[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    from math import fsum, prod

    from optiq.files import size_text

    everything = sum(prod(choice["shape"]) for choice in choices)
    rows = []
    for bits in sorted({choice["bits"] for choice in choices}):
        of_width = [choice for choice in choices if choice["bits"] == bits]
        share = 100 * sum(prod(choice["shape"]) for choice in of_width) / max(everything, 1)
        size = sum(choice["bytes"] for choice in of_width)
        damage = fsum(choice["damage_nats"] for choice in of_width)
        rows.append((str(bits), str(len(of_width)), f"{share:.1f} %", size_text(size), f"{damage:.4g}"))
    return rows


def _budget_text(budget: dict[str, Any]) -> str:
    kind, value = budget["kind"], budget["value"]
    return {"bpw": f"{value:g} bits per weight", "gb": f"{value:g} GB of model files"}.get(
        kind, f"{value:,} bytes of model files"
    )
