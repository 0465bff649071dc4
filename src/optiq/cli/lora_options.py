"""The options of `optiq lora`, and those of training as `optiq.lora.settings.Settings`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from optiq.files import user_path

if TYPE_CHECKING:
    from optiq.lora.settings import Settings


def _data_arguments(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model directory, or a hub id; quantized or not")
    parser.add_argument("--data", required=needed, metavar="PATH", help="JSON lines: a file, or a directory with train.jsonl")
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


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Data, adapter, steps and log."""
    _data_arguments(parser, needed=False)  # --find-max-length reads none
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
    add(
        "--init",
        choices=("random", "quantization-error"),
        default="random",
        help="how adapters begin: changing nothing, or as the best correction of the quantization error (default: %(default)s)",
    )
    add("--base", metavar="MODEL", help="the model before quantization, for --init quantization-error")
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


def check_arguments(parser: argparse.ArgumentParser) -> None:
    """Data, and what to show of them."""
    _data_arguments(parser)
    parser.add_argument("--show", type=int, default=1, metavar="N", help="samples to show token by token (default: %(default)s)")


def info_arguments(parser: argparse.ArgumentParser) -> None:
    """One adapter."""
    parser.add_argument("adapter", metavar="DIR", help="an adapter's directory")


def merge_arguments(parser: argparse.ArgumentParser) -> None:
    """Adapters, their weights, the output."""
    parser.add_argument("adapters", metavar="DIR", nargs="+", help="adapters of one model")
    parser.add_argument("--model", required=True, metavar="MODEL", help="the model that they are for")
    parser.add_argument("--scales", metavar="LIST", help='weights, e.g. "1.0,0.8" (default: 1 each)')
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an adapter that is there")


def fuse_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, adapter, the output."""
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
        data=args.data or "",
        output=user_path(args.output),
        valid=args.valid,
        method=args.method,
        param_budget=args.param_budget,
        rslora=args.use_rslora,
        dora=args.use_dora,
        init=args.init,
        base=args.base,
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
