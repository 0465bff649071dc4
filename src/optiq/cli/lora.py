"""`optiq lora`: train adapters, look at their data and at them, put them together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optiq.events import MODES, Events

if TYPE_CHECKING:
    from optiq.lora.corpus import Corpus
    from optiq.lora.settings import Settings

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
        ("train", "train an adapter", _train_arguments),
        ("check", "show what training would read: counts, lengths, the tokens that carry loss", _check_arguments),
        ("info", "show what an adapter is", _info_arguments),
        ("merge", "add adapters up, exactly, into one", _merge_arguments),
        ("fuse", "write a model that needs no adapter, and measure what coding it again cost", _fuse_arguments),
    ):
        verb = verbs.add_parser(
            name,
            help=text,
            description=text.capitalize() + ".",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the result as JSON on stdout")
        verb.add_argument("--events", choices=MODES, default=argparse.SUPPRESS, help="how progress is shown on stderr")
        add(verb)


def run(args: argparse.Namespace, events: Events) -> int:
    """Do what the verb says."""
    return {"train": _train, "check": _check, "info": _info, "merge": _merge, "fuse": _fuse}[args.verb](args, events)


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model directory, or a hub id; quantized or not")
    parser.add_argument("--data", required=True, metavar="PATH", help="JSON lines: a file, or a directory with train.jsonl")
    parser.add_argument("--valid", metavar="FILE", help="JSON lines to validate on (default: valid.jsonl of the directory)")
    parser.add_argument(
        "--method", choices=("sft", "dpo"), default="sft", help="sft, or dpo on preferences (default: %(default)s)"
    )
    parser.add_argument(
        "--max-seq-length",
        type=int,
        default=512,
        metavar="L",
        help="tokens of a sample; the rest is cut off (default: %(default)s)",
    )
    parser.add_argument(
        "--mask-prompt",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="prompts carry no loss, replies alone do (default: on)",
    )
    parser.add_argument(
        "--all-turns",
        choices=("auto", "on", "off"),
        default="auto",
        help="every reply of a conversation carries loss (auto, on), or the last one (off) (default: %(default)s)",
    )


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    _data_arguments(parser)
    _adapter_arguments(parser)
    _step_arguments(parser)
    _log_arguments(parser)


def _adapter_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", choices=("small", "default", "medium", "large", "xl", "xxl", "reference"), help="rank and scale by name")
    add("--rank", type=int, metavar="R", help="rank of an adapter (default: 8)")
    add("--scale", type=float, metavar="S", help="alpha over rank (default: 1)")
    add("--rank-scaling", choices=("constant", "by_bits", "by_sensitivity"), help="how ranks follow the layer (default: by_bits)")
    add("--param-budget", type=int, metavar="N", help="scale ranks to at most so many parameters")
    add("--target-modules", metavar="LIST", help="ends of layers' paths, or all: the linear layers of all blocks (default: all)")
    add("--num-layers", type=int, metavar="N", help="blocks from the end that get adapters; -1: all (default: -1)")
    add("--use-dora", action="store_true", help="train magnitudes too (DoRA)")
    add("--use-rslora", action="store_true", help="divide alpha by the root of the rank")
    add("--dropout", type=float, default=0.0, metavar="P", help="share of adapter inputs that are dropped (default: %(default)s)")


def _step_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--iters", type=int, metavar="N", help="optimizer steps (default: as many as --num-epochs takes)")
    add("--num-epochs", type=int, metavar="N", help="passes over the data (default: 3, dpo 1)")
    add("--batch-size", type=int, default=1, metavar="N", help="samples of a batch (default: %(default)s)")
    add("--grad-accumulation-steps", type=int, default=1, metavar="N", help="batches of a step (default: %(default)s)")
    add("--lr", type=float, metavar="X", help="highest learning rate (default: 2e-4, dpo 5e-5)")
    add("--lr-schedule", choices=("cosine", "constant"), default="cosine", help="cosine ends at a tenth (default: %(default)s)")
    add("--warmup-iters", type=int, metavar="N", help="steps of linear warm-up (default: a tenth, 2 to 100)")
    add("--weight-decay", type=float, default=0.01, metavar="X", help="of AdamW (default: %(default)s)")
    add("--clip", type=float, default=1.0, metavar="X", help="largest norm of the gradient; 0: none (default: %(default)s)")
    add("--packing", action=argparse.BooleanOptionalAction, default=True, help="samples side by side, apart (default: on)")
    add(
        "--grad-checkpoint",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute blocks twice to save memory (default: on)",
    )
    add("--dpo-beta", type=float, default=0.1, metavar="X", help="strength of preferences (default: %(default)s)")
    add("--dpo-loss", choices=("sigmoid", "ipo"), default="sigmoid", help="which loss (default: %(default)s)")
    add("--dpo-label-smoothing", type=float, default=0.0, metavar="X", help="share of wrong labels (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of everything random (default: %(default)s)")


def _log_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", default="optiq_lora_adapters", metavar="DIR", help="directory to write (default: %(default)s)")
    add("--val-batches", type=int, default=25, metavar="N", help="batches of a validation; -1: all (default: %(default)s)")
    add("--steps-per-report", type=int, default=10, metavar="N", help="steps between lines of the log (default: %(default)s)")
    add("--steps-per-eval", type=int, default=200, metavar="N", help="steps between validations (default: %(default)s)")
    add("--steps-per-save", type=int, default=100, metavar="N", help="steps between states to go on from (default: %(default)s)")
    add(
        "--early-stopping-patience",
        type=int,
        default=0,
        metavar="N",
        help="validations without progress that end the run; 0: none do (default: %(default)s)",
    )
    add("--early-stopping-min-delta", type=float, default=0.0, metavar="X", help="progress in nats (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace what is in the output directory")
    add("--find-max-length", action="store_true", help="train nothing: measure how long sequences can be here")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    _data_arguments(parser)
    parser.add_argument("--show", type=int, default=1, metavar="N", help="samples to show token by token (default: %(default)s)")


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="DIR", help="an adapter's directory")


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapters", metavar="DIR", nargs="+", help="adapters of one model")
    parser.add_argument("--model", required=True, metavar="MODEL", help="the model that they are for")
    parser.add_argument("--scales", metavar="LIST", help='weights, e.g. "1.0,0.8" (default: 1 each)')
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an adapter that is there")


def _fuse_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model's directory, or a hub id")
    parser.add_argument("--adapter", required=True, metavar="DIR", help="the adapter")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a directory that is there")


def settings(args: argparse.Namespace) -> Settings:
    """The arguments of `train` as `Settings`."""
    from optiq.lora.settings import PRESETS, Settings

    chosen: dict[str, Any] = dict(PRESETS[args.preset]) if args.preset else {}
    for key in ("rank", "scale", "rank_scaling", "num_layers"):
        if getattr(args, key) is not None:
            chosen[key] = getattr(args, key)
    if args.target_modules is not None:
        chosen["target_modules"] = tuple(name.strip() for name in args.target_modules.split(",") if name.strip())
    return Settings(
        model=args.model,
        data=args.data,
        output=Path(args.output).expanduser(),
        valid=args.valid,
        method=args.method,
        param_budget=args.param_budget,
        rslora=args.use_rslora,
        dora=args.use_dora,
        dropout=args.dropout,
        iters=args.iters,
        epochs=args.num_epochs,
        lr=args.lr,
        schedule=args.lr_schedule,
        warmup=args.warmup_iters,
        weight_decay=args.weight_decay,
        clip=args.clip,
        batch_size=args.batch_size,
        accumulation=args.grad_accumulation_steps,
        max_length=args.max_seq_length,
        packing=args.packing,
        recompute=args.grad_checkpoint,
        val_batches=args.val_batches,
        report_every=args.steps_per_report,
        eval_every=args.steps_per_eval,
        save_every=args.steps_per_save,
        patience=args.early_stopping_patience,
        min_delta=args.early_stopping_min_delta,
        mask_prompt=args.mask_prompt,
        all_turns=args.all_turns,
        dpo_beta=args.dpo_beta,
        dpo_loss=args.dpo_loss,
        label_smoothing=args.dpo_label_smoothing,
        seed=args.seed,
        overwrite=args.overwrite,
        **chosen,
    )


def _train(args: argparse.Namespace, events: Events) -> int:
    from optiq.cli.facts import facts
    from optiq.cli.output import show
    from optiq.files import size_text
    from optiq.lora import picture, train

    if args.find_max_length:
        return _ceiling(args, events)
    done = train.run(settings(args), events)
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

    found = ceiling.measure(settings(args), events)
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

    data = describe(Path(args.adapter).expanduser())
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

    output = Path(args.output).expanduser()
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
    adapter = load_adapter(Path(args.adapter).expanduser(), model)
    done = fuse(source, model, adapter, Path(args.output).expanduser(), args.overwrite, events)
    data = {"output": str(done.path), "layers": done.layers, "bytes": done.bytes, "kl": done.kl}
    kl = "not measured: the model has no tokenizer"
    if done.kl is not None:
        low, high = done.kl["ci95"]  # type: ignore[misc]
        kl = f"{done.kl['mean']:.3g} nats per token ({low:.3g} to {high:.3g}) from model and adapter"
    lines = [("written", f"{done.path}, {size_text(done.bytes)}"), ("layers", f"{done.layers} changed"), ("KL", kl)]
    show(args, events, data, facts(lines))
    return 0
