"""`optiq compare`: models beside one of them, by size, divergence, perplexity, greedy texts and answers that flip."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from optiq.events import Events

if TYPE_CHECKING:
    from optiq.evals.comparison import Comparison, Side

EXAMPLE = """\
examples:
  optiq compare examples/tiny-qwen3.5 OUT OTHER              OUT and OTHER against the first
  optiq compare OUT OTHER --reference examples/tiny-qwen3.5 --tokens
  optiq compare examples/tiny-qwen3.5 OUT --text notes.txt --tokens -o compared.json

Models are read one after the other and need not fit into memory together.
"""

_WORST = 12  # tokens that the text shows; JSON has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("models", metavar="MODEL", nargs="+", help="model directories or hub ids")
    parser.add_argument("--reference", metavar="MODEL", help="what all are compared with; the first one without it")
    parser.add_argument("--tokens", action="store_true", help="tell the divergence token by token")
    parser.add_argument("--text", metavar="FILE", help="own text, or JSON lines as for calibration; held-out text without it")
    parser.add_argument("--rows", type=int, default=2, metavar="N", help="documents per domain")
    parser.add_argument("--length", type=int, default=512, metavar="L", help="tokens per document")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="for the greedy texts; may be repeated")
    parser.add_argument("--texts", type=int, default=4, metavar="N", help="held-out prompts without --prompt; 0 for no texts")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="of a greedy text")
    parser.add_argument("--results", default="evals", metavar="DIR", help="where `optiq eval` wrote answers, for flips")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write the JSON there")


def run(args: argparse.Namespace, events: Events) -> int:
    """Compare, write, show."""
    from optiq import files
    from optiq.cli.output import show
    from optiq.evals.comparison import Settings, compare
    from optiq.models.hub import resolve

    names = _checked(args)
    places = [(name, resolve(name, events=events)) for name in names]
    settings = Settings(
        args.length, args.rows, Path(args.text) if args.text else None, tuple(args.prompt), args.texts, args.max_tokens,
        Path(args.results),
    )  # fmt: skip
    labelled = list(zip(labels(names), [path for _, path in places], strict=True))
    found = compare(labelled[0], labelled[1:], settings, events)
    data = found.as_json(args.tokens)
    if args.output:
        files.write_json(args.output, data, indent=None)
    show(args, events, data, text(found, args.tokens))
    return 0


def _checked(args: argparse.Namespace) -> list[str]:
    """The reference and the models.

    Raises:
        InputError: fewer than two, or a number out of range.
    """
    from optiq.errors import InputError

    names = [*([args.reference] if args.reference else []), *args.models]
    if len(names) < 2:
        raise InputError("compare takes two models at least, given 1; name another, or --reference")
    for name, least in (("rows", 1), ("length", 2), ("texts", 0), ("max_tokens", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected a whole number of at least {least}")
    return names


def labels(names: list[str]) -> list[str]:
    """What tables call models: the names of directories, whole where two would be the same."""
    short = [Path(name).resolve().name if Path(name).is_dir() else name for name in names]
    return [one if short.count(one) == 1 else name for one, name in zip(short, names, strict=True)]


def text(found: Comparison, per_token: bool) -> str:
    """The comparison for people."""
    parts = [_table(found), _partings(found), _flips(found)]
    if per_token:
        parts += [_worst(found, side) for side in found.sides]
    return "\n\n".join(part for part in parts if part)


def _table(found: Comparison) -> str:
    from optiq.cli.output import table
    from optiq.evals.fidelity import perplexity
    from optiq.files import size_text
    from optiq.measure.bootstrap import interval

    head = ["model", "bytes", "size", "bpw", "KL, nats (95 %)", "p99", "same top", "perplexity"]
    about = found.about
    bits = f"{about.bpw or about.file_bpw:.3f}"
    losses = found.sides[0].far.losses[0]
    lines = [[f"{found.label} (reference)", f"{about.file_bytes:,}", size_text(about.file_bytes), bits, "", "", "",
              f"{perplexity(losses):.3f}"]]  # fmt: skip
    for side in found.sides:
        figures, about = side.far.summary(), side.about
        low, high = interval(side.far.kl.mean(1))
        lines.append(
            [side.label, f"{about.file_bytes:,}", size_text(about.file_bytes), f"{about.bpw or about.file_bpw:.3f}",
             f"{figures['mean']:.5f} ({low:.5f} to {high:.5f})", f"{figures['p99']:.4f}", f"{100 * side.far.same.mean():.1f} %",
             f"{perplexity(side.far.losses[1]):.3f}"]
        )  # fmt: skip
    shape = found.tokens.ids.shape
    note = f"{shape[0]} documents of {shape[1]} tokens ({found.tokens.set_name}); float32 arithmetic on the stored values"
    return f"{table(head, lines, right=range(1, len(head)))}\n{note}"


def _partings(found: Comparison) -> str:
    """Where each greedy text leaves the reference's."""
    lines = []
    for number, first in enumerate(found.sides[0].partings):
        lines.append(f"prompt {number + 1}: {_short(first.prompt, 100)}")
        for side in found.sides:
            one = side.partings[number]
            if one.at is None:
                lines.append(f"  {side.label}: the same text")
            else:
                theirs, ours = (_short(rest, 40) for rest in one.rest)
                lines.append(f"  {side.label}: {one.at} tokens the same, then {ours!r} for {theirs!r}")
    return "\n".join(["greedy texts, beside the reference's", *lines]) if lines else ""


def _flips(found: Comparison) -> str:
    lines = [
        f"  {name}, {side.label}: {len(pair.gained)} gained, {len(pair.lost)} lost: {pair.word}"
        for side in found.sides
        for name, pair in side.flips.items()
    ]
    return "\n".join(["answers of earlier runs of optiq eval, beside the reference's", *lines]) if lines else ""


def _worst(found: Comparison, side: Side) -> str:
    """The tokens after which a model is furthest from the reference."""
    from optiq.cli.output import table

    kl = side.far.kl
    lines = []
    for place in kl.ravel().argsort()[::-1][:_WORST]:
        row, at = divmod(int(place), kl.shape[1])
        before = "".join(found.pieces[row][max(0, at - 7) : at + 1])
        theirs, ours = (repr(found.vocabulary[int(top[row, at])]) for top in side.far.tops)
        lines.append([f"{found.tokens.documents[row]} @{at}", f"{kl[row, at]:.3f}", theirs, ours, repr(before[-40:])])
    head = ["token", "KL, nats", "reference's next", "its next", "after"]
    return f"{side.label}, where it is furthest\n{table(head, lines, right=(1,))}"


def _short(words: str, most: int) -> str:
    flat = " ".join(words.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"
