"""`optiq lora`: train adapters, look at their data and at them, put them together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optiq.cli import lora_options as options
from optiq.events import MODES, Events
from optiq.files import user_path

if TYPE_CHECKING:
    from optiq.lora.corpus import Corpus

EXAMPLE = """\
example:
  optiq lora check examples/tiny-qwen3.5 --data my_data --max-seq-length 512
  optiq lora train examples/tiny-qwen3.5 --data my_data --rank 8 --iters 100 -o my_adapter
  optiq lora info my_adapter
  optiq lora fuse examples/tiny-qwen3.5 --adapter my_adapter -o fused
  optiq lora merge my_adapter other_adapter --model examples/tiny-qwen3.5 -o both

Data are JSON lines of text; prompt and completion; messages; or prompt, chosen and rejected: a file, or a directory with
train.jsonl and valid.jsonl. A run that was killed goes on when the same command is given again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text, add in (
        ("train", "train an adapter", options.train_arguments),
        ("check", "show what training would read: counts, lengths, the tokens that carry loss", options.check_arguments),
        ("info", "show what an adapter is", options.info_arguments),
        ("merge", "add adapters up, exactly, into one", options.merge_arguments),
        ("fuse", "write a model that needs no adapter, and measure what coding it again cost", options.fuse_arguments),
    ):
        verb = verbs.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the result as JSON on stdout")
        verb.add_argument("--events", choices=MODES, default=argparse.SUPPRESS, help="how progress is shown on stderr")
        add(verb)


def run(args: argparse.Namespace, events: Events) -> int:
    """Do what the verb says."""
    return {"train": _train, "check": _check, "info": _info, "merge": _merge, "fuse": _fuse}[args.verb](args, events)


def _train(args: argparse.Namespace, events: Events) -> int:
    from optiq.cli.facts import facts
    from optiq.cli.output import show
    from optiq.errors import InputError
    from optiq.files import size_text
    from optiq.lora import picture, train

    if args.find_max_length:
        return _ceiling(args, events)
    if args.data is None:
        raise InputError("lora train needs --data PATH; without it --find-max-length alone can be asked for")
    done = train.run(options.settings(args), events)
    picture.draw(done.path)
    data = {
        "adapter": str(done.path),
        "steps": done.steps,
        "resumed": done.resumed,
        "stopped_early": done.stopped,
        "parameters": done.parameters,
        "loss": done.train,
        "valid_loss": done.valid,
        "best_step": done.best_step,
        "seconds": done.seconds,
        "tokens": done.tokens,
        "peak_bytes": done.peak_bytes,
        "ranks": dict(done.ranks),
    }
    lowest, highest = min(done.ranks.values()), max(done.ranks.values())
    speed = f", {done.tokens / done.seconds:.0f} tokens per second" if done.tokens else ""
    lines = [
        ("written", str(done.path)),
        ("adapter", f"{done.parameters:,} parameters in {len(done.ranks)} layers, ranks {lowest} to {highest}"),
        ("steps", f"{done.steps}{' (stopped early)' if done.stopped else ''}, {done.seconds:.0f} s{speed}"),
        ("loss", f"{done.train:.4f}" + ("" if done.valid is None else f"; validated {done.valid:.4f} at step {done.best_step}")),
        ("memory", size_text(done.peak_bytes)),
    ]
    show(args, events, data, facts(lines))
    return 0


def _ceiling(args: argparse.Namespace, events: Events) -> int:
    from dataclasses import asdict

    from optiq.cli.output import show, table
    from optiq.files import size_text
    from optiq.lora import ceiling

    found = ceiling.measure(options.settings(args), events)
    rows = [(f"{length:,}", size_text(peak), f"{speed:.0f}") for length, peak, speed in found.steps]
    text = table(("tokens", "peak memory", "tokens per second"), rows, range(3))
    show(args, events, asdict(found), f"{text}\n\nabout {found.length:,} tokens fit into {size_text(found.available_bytes)}")
    return 0


def _check(args: argparse.Namespace, events: Events) -> int:
    from optiq.cli.output import show
    from optiq.lora import corpus
    from optiq.lora.settings import Settings
    from optiq.models.chat import load_tokenizer
    from optiq.models.hub import resolve

    asked = Settings(
        args.model,
        args.data,
        Path("."),
        valid=args.valid,
        method=args.method,
        max_length=args.max_seq_length,
        mask_prompt=args.mask_prompt,
        all_turns=args.all_turns,
    )
    tokenizer = load_tokenizer(resolve(args.model))
    found = corpus.load(asked, tokenizer)
    data: dict[str, Any] = {"train": found.train.facts(), "valid": found.valid.facts() if found.valid else None}
    data["shown"] = [
        {
            "place": sample.place,
            "tokens": list(sample.tokens),
            "loss": list(sample.loss),
            "pieces": _pieces(sample, tokenizer),
        }
        for sample in found.train.samples[: args.show]
    ]
    show(args, events, data, _check_report(found, tokenizer, args.show))
    return 0


def _check_report(found: Corpus, tokenizer: Any, count: int) -> str:
    from optiq.cli.output import table

    parts = [("train", found.train), *([("valid", found.valid)] if found.valid else [])]
    rows = []
    for name, part in parts:
        facts = part.facts()
        lengths = " ".join(str(value) for value in facts["length"].values())
        rows.append(
            (
                name,
                *(f"{facts[key]:,}" for key in ("records", "samples", "tokens", "loss_tokens", "truncated")),
                str(len(facts["dropped"])),
                lengths,
            )
        )
    head = ("", "records", "samples", "tokens", "with loss", "truncated", "dropped", "length: least, median, 95 %, most")
    lines = [table(head, rows, range(1, 7))]
    for sample in found.train.samples[:count]:
        lines += ["", f"{sample.place}, what carries loss in [[ ]]:", _marked(sample, tokenizer)]
    return "\n".join(lines)


def _marked(sample: Any, tokenizer: Any) -> str:
    """The text of a sample with brackets around what carries loss."""
    return "".join(f"[[{text}]]" if carries else text for text, carries in _pieces(sample, tokenizer))


def _pieces(sample: Any, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of a sample, cut where carrying loss begins and ends: (text, whether it carries loss)."""
    pieces, start = [], 0
    for end in range(1, len(sample.tokens) + 1):
        if end == len(sample.tokens) or sample.loss[end] != sample.loss[start]:
            pieces.append((tokenizer.decode(sample.tokens[start:end]), bool(sample.loss[start])))
            start = end
    return pieces


def _info(args: argparse.Namespace, events: Events) -> int:
    from optiq.cli.facts import facts
    from optiq.cli.output import show
    from optiq.lora.describe import describe

    data = describe(user_path(args.adapter))
    lines = [
        ("base model", str(data["base_model"])),
        ("kind", str(data["kind"])),
        ("parameters", f"{data['parameters']:,} in {len(data['ranks'])} layers"),
        ("ranks", ", ".join(f"{rank}: {count}" for rank, count in data["rank_counts"].items()) + " (rank: layers)"),
        ("layers", ", ".join(data["modules"])),
    ]
    if data["training"]:
        told = {key: value for key, value in data["training"].items() if key in ("method", "steps", "best_step", "valid_loss")}
        lines.append(("training", ", ".join(f"{key} {value}" for key, value in told.items())))
    show(args, events, data, facts(lines))
    return 0


def _merge(args: argparse.Namespace, events: Events) -> int:
    from optiq.cli.output import show
    from optiq.errors import InputError
    from optiq.lora import save
    from optiq.lora.adapters import load_adapter
    from optiq.lora.combine import combined
    from optiq.models.hub import resolve
    from optiq.models.load import load_modules

    output = user_path(args.output)
    if save.present(output) and not args.overwrite:
        raise InputError(f"{output} holds an adapter already; choose another -o, or use --overwrite")
    try:
        scales = [float(part) for part in args.scales.split(",")] if args.scales else [1.0] * len(args.adapters)
    except ValueError:
        raise InputError(f"--scales {args.scales!r} is not a list of numbers; try --scales 1.0,0.8") from None
    model, _ = load_modules(resolve(args.model))
    found = combined([load_adapter(path, model) for path in args.adapters], scales)
    save.write(
        output, found, args.model, {"merged": [{"adapter": a, "scale": s} for a, s in zip(args.adapters, scales, strict=True)]}
    )
    rank = max(part.a.shape[-2] for part in found.values())
    data = {"adapter": str(output), "sources": args.adapters, "scales": scales, "rank": rank}
    show(args, events, data, f"{output}: {len(args.adapters)} adapters in one, ranks up to {rank}")
    return 0


def _fuse(args: argparse.Namespace, events: Events) -> int:
    from optiq.cli.facts import facts
    from optiq.cli.output import show
    from optiq.files import size_text
    from optiq.lora.adapters import load_adapter
    from optiq.lora.fuse import fuse
    from optiq.models.hub import resolve
    from optiq.models.load import load_modules

    source = resolve(args.model)
    model, _ = load_modules(source)
    adapter = load_adapter(user_path(args.adapter), model)
    done = fuse(source, model, adapter, user_path(args.output), args.overwrite, events)
    data = {"output": str(done.path), "layers": done.layers, "bytes": done.bytes, "kl": done.kl}
    kl = "not measured: the model has no tokenizer"
    if done.kl is not None:
        low, high = done.kl["ci95"]  # type: ignore[misc]
        kl = f"{done.kl['mean']:.3g} nats per token ({low:.3g} to {high:.3g}) from model and adapter"
    lines = [("written", f"{done.path}, {size_text(done.bytes)}"), ("layers", f"{done.layers} changed"), ("KL", kl)]
    show(args, events, data, facts(lines))
    return 0
