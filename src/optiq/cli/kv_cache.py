"""`optiq kv-cache`: choose the bits of each layer's keys and values by what they cost."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from optiq.events import Events
from optiq.files import user_path

if TYPE_CHECKING:
    from optiq.kv.study import Settings, Study

EXAMPLE = """\
example:
  optiq kv-cache examples/tiny-qwen3.5 --target-bits 4.5 --candidate-bits 3,4,5,6 -o optiq_output/kv_cache
  optiq generate examples/tiny-qwen3.5 --prompt "The sea" --kv-config optiq_output/kv_cache
  optiq kv-cache examples/tiny-qwen3.5 --target-bits 4 --from optiq_output/kv_cache -o optiq_output/kv_4

The target is a ceiling for the mean width of codes over all keys and values.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model directory, or a hub id")
    parser.add_argument(
        "-o", "--output", default="optiq_output/kv_cache", metavar="DIR", help="directory to write (default: %(default)s)"
    )
    parser.add_argument("--target-bits", type=float, default=5.0, metavar="B", help="mean bits per value (default: %(default)s)")
    parser.add_argument("--candidate-bits", default="4,8", metavar="LIST", help="widths to choose from (default: %(default)s)")
    parser.add_argument(
        "--n-samples", type=int, metavar="N", help="rows of calibration text (default: 1 to 4, fewer for larger models)"
    )
    parser.add_argument(
        "--seq-len",
        type=int,
        default=8192,
        metavar="L",
        help="tokens per row, at most the model's context (default: %(default)s)",
    )
    parser.add_argument(
        "--group-size", type=int, default=64, metavar="G", help="scheme affine: values per scale (default: %(default)s)"
    )
    parser.add_argument(
        "--scheme",
        choices=("affine", "turbo", "best"),
        default="best",
        help="how vectors are coded; affine writes the plain form alone (default: %(default)s)",
    )
    parser.add_argument("--from", dest="source", metavar="DIR", help="take the damages that an earlier run measured from its -o")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run")


def run(args: argparse.Namespace, events: Events) -> int:
    """Measure, choose, write, then print the table of damages."""
    from optiq.cli.output import show
    from optiq.kv import study

    wanted = settings(args)
    done = study.run(wanted, events)
    show(args, events, data(done, wanted), report(done, wanted))
    return 0


def settings(args: argparse.Namespace) -> Settings:
    """The arguments as `Settings`."""
    from optiq.errors import InputError
    from optiq.kv.study import Settings

    try:
        bits = tuple(sorted({int(part) for part in args.candidate_bits.split(",")}))
    except ValueError:
        raise InputError(
            f"--candidate-bits {args.candidate_bits!r} is not a list of integers; try --candidate-bits 4,8"
        ) from None
    return Settings(
        model=args.model,
        output=user_path(args.output),
        target_bits=args.target_bits,
        candidate_bits=bits,
        samples=args.n_samples,
        length=args.seq_len,
        group_size=args.group_size,
        scheme=args.scheme,
        overwrite=args.overwrite,
        source=user_path(args.source) if args.source else None,
    )


def data(done: Study, wanted: Settings) -> dict[str, Any]:
    """The result for machines."""
    from optiq.kv.table import entry, full_bytes, mean_bits

    rows, length = done.text.ids.shape
    return {
        "config": str(done.path),
        "scheme": wanted.scheme,
        "target_bits": wanted.target_bits,
        "mean_bits": mean_bits(done.found, done.recipes),
        "bytes_per_token": done.plan.bytes,
        "full_bytes_per_token": full_bytes(done.found),
        "predicted_kl": done.plan.damage,
        "measured_kl": done.measured,
        "tokens": {"rows": rows, "length": length, "sha256": done.text.sha256},
        "layers": [
            entry(one) | {"k_bits": done.recipes[one.layer.index].k_bits, "v_bits": done.recipes[one.layer.index].v_bits}
            for one in done.found
        ],
    }


def report(done: Study, wanted: Settings) -> str:
    """What a person reads at the end: the damages with the chosen width of each side, then the plan."""
    from optiq.cli.facts import facts
    from optiq.cli.output import table
    from optiq.kv.table import full_bytes, mean_bits

    widths = sorted(done.found[0].keys)
    rows = []
    for entry in done.found:
        recipe = done.recipes[entry.layer.index]
        for side, damages, chosen in (("keys", entry.keys, recipe.k_bits), ("values", entry.values, recipe.v_bits)):
            rows.append((str(entry.layer.index), side, *(f"{damages[b]:.3g}" for b in widths), str(chosen)))
    head = ("layer", "side", *(f"KL at {bits} bits" for bits in widths), "chosen")
    full = full_bytes(done.found)
    lines = [
        ("written", str(done.path)),
        ("mean width", f"{mean_bits(done.found, done.recipes):.3f} bits, at most {wanted.target_bits:g} asked for"),
        (
            "per token",
            f"{done.plan.bytes:,} bytes packed, {full:,} in full precision ({full / done.plan.bytes:.2f} times as much)",
        ),
        ("KL predicted", f"{done.plan.damage:.3g} nats per token"),
        (
            "KL measured",
            f"{done.measured['packed']:.3g} with every token packed, {done.measured['decoding']:.3g} as decoding packs",
        ),
        ("measured on", f"{len(done.text.ids)} rows of {done.text.ids.shape[1]} tokens"),
    ]
    return table(head, rows, range(2, len(head))) + "\n\n" + facts(lines)
