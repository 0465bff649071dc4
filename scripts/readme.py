"""Write the generated parts of README.md and of the guides from `benchmarks/results/*.json` and the tree; `--check` compares.

    python scripts/readme.py [--check]

A generated part stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`. Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"<!-- generated: (?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- end: (?P=name) -->", re.DOTALL)
PACKAGES = {  # what a package without a docstring of its own does
    "cli": "the command line: `main` and one file per command",
    "generate": "sampling, the decoding loop, conversations, speed",
    "kernels": "operations: a definition in plain MLX each, and faster forms",
    "measure": "text, statistics, sensitivity, divergence",
    "models": "the only importer of mlx-lm: checkpoints, architectures, block by block",
    "plan": "the exact choice of one option per tensor under a byte budget; pure Python",
    "quantize": "encoders and the pipeline of `optiq convert`",
    "serve": "the parts of a serving engine; so far what reads a reply: reasoning, answer, calls of tools",
}
FOLDERS = {  # what a folder without a docstring of its own holds
    "native": "C and C++ sources of the optional native parts",
    "examples/tiny-qwen3.5": "a trained 10 M parameter Qwen3.5 model: the demo's default, the tests' fixture",
    "tests": "mirror `src/`; `make test` is the default tier, `make check` the slow one",
    "benchmarks": "one script per claim, the results that they wrote, the pictures made from them",
    "scripts": "what makes generated files: the README's tables, the packaged texts",
    "docs": "architecture, file formats, conventions",
}


SPEED = {  # script -> bars that the README shows; the guides have them all
    "cpu": ("2.decode_0", "2.decode_16k", "2.prefill_512", "2.prefill_4k", "2.stock_decode", "2.train"),
    "kv": ("3.kl_over_turbo_2048_3bit", "3.decode_tq3_64k", "3.decode_tq3_over_llama"),
    "engine": ("4.streams_over_llama", "4.turn_two_time", "4.mtp_tokens_per_forward_greedy"),
    "lora": ("6.over_peft_0_8b", "6.memory_over_peft_0_8b"),
}


def result(name: str) -> dict[str, Any] | None:
    """One result file, or None where nobody has run the benchmark."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def missing(script: str) -> str:
    """What stands in the place of a table that was not measured."""
    return f"Not measured yet: `python benchmarks/{script}.py` writes it.\n"


def interval(span: list[float], digits: str) -> str:
    """An interval in the text of a cell."""
    return f"{span[0]:{digits}}–{span[1]:{digits}}"


def quality() -> str:
    """One row per peer: its bytes and KL, ours at those bytes, the ratio with its interval, top-1 agreement."""
    found = result("quality")
    if found is None:
        return missing("quality")
    text, host = found["raw"]["text"], found["machine"]
    options = f"Ours with `{found['raw']['ours_options']}`. " if found["raw"].get("ours_options") else ""
    lines = [
        "| peer | bpw | bytes, peer / ours | KL of the peer | KL of ours | ours / peer (95 %) | top-1, peer / ours |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in sorted(found["raw"]["arms"], key=lambda arm: arm["theirs"]["file_bytes"]):
        theirs, ours = arm["theirs"], arm["ours"]
        cells = [
            arm["what"],
            f"{theirs['bpw']:.2f}",
            f"{theirs['file_bytes']:,} / {ours['file_bytes']:,}",
            f"{theirs['kl_mean']:.5f}",
            f"{ours['kl_mean']:.5f}",
            f"{arm['ratio']:.2f} ({interval(arm['ratio_ci95'], '.2f')})",
            f"{100 * theirs['top1']:.1f} % / {100 * ours['top1']:.1f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "bpw: bits per weight, scales and biases counted. KL(bf16 ‖ quantized): nats per token over "
        f"{text['tokens']:,} tokens of {text['documents']} held-out documents (the *score* set), float32 arithmetic on "
        "dequantized weights; "
        "bytes are those of `model*.safetensors`; intervals are paired 95 % bootstraps over documents. "
        f"{options}mlx {host['mlx']}, mlx-lm {host['mlx_lm']}, {found['date'][:10]}.",
    ]
    return "\n".join(lines) + "\n"


def rows(name: str) -> Callable[[], str]:
    """A table of one row per bar of a script: the figure, what it is measured against, whether it is met."""

    def table() -> str:
        found = result(name)
        if found is None:
            return missing(name)
        return _table(found["bars"], [found])

    return table


def speed() -> str:
    """The rows of `SPEED`, of the scripts that were run."""
    found = [part for name in SPEED if (part := result(name)) is not None]
    chosen = [row for part in found for row in part["bars"] if row["id"] in {id_ for ids in SPEED.values() for id_ in ids}]
    return _table(chosen, found) if chosen else missing("cpu")


def _table(bars: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    """Bars as rows, and where and when they were measured."""
    lines = ["| what | figure | required | measured |", "|---|---:|---:|---|"]
    for row in bars:
        met = "" if row["met"] else " (not met)"
        lines.append(f"| {row['what']} | {_figure(row)}{met} | {row['direction']} {row['bar']:g} | {row['baseline']} |")
    host, dates = found[0]["machine"], sorted({part["date"][:10] for part in found})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return "\n".join([*lines, "", f"{host['cpu']}, {host['cores']} cores, mlx {host['mlx']}, {when}."]) + "\n"


def bars() -> str:
    """How many of the requirements are met, and every one that is not."""
    results = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    rows = [row for found in results for row in found["bars"]]
    if not rows:
        return missing("bars")
    failed = [row for row in rows if not row["met"]]
    lines = [f"{len(rows) - len(failed)} of {len(rows)} measured requirements are met (`make bars` prints all)."]
    if failed:
        lines += ["Not met:", ""]
        lines += [f"- {row['what']}: {_figure(row)}, required {row['direction']} {row['bar']:g}" for row in failed]
    return "\n".join(lines) + "\n"


def _figure(row: dict[str, Any]) -> str:
    if row["figure"] is None:
        return "not measured"
    text = f"{row['figure']:.3g} {row['unit']}".rstrip()
    return f"{text} ({interval(row['interval'], '.3g')})" if row.get("interval") else text


def summary(path: Path) -> str:
    """The first sentence of a module's or a package's docstring, or ""."""
    source = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(source.read_text())) if source.exists() else None
    sentence = text.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".") if text else ""
    return PACKAGES.get(path.name, "") if path.is_dir() and not sentence else sentence.split(": ")[0]


def tree() -> str:
    """Each package of `src/optiq` and each folder of the checkout with one line."""
    source = ROOT / "src" / "optiq"
    packages = sorted(path for path in source.iterdir() if path.is_dir() and path.name != "__pycache__")
    modules = sorted(path for path in source.glob("*.py") if path.name != "__init__.py")
    rows = [(f"src/optiq/{path.name}/", summary(path)) for path in packages]
    rows += [(f"src/optiq/{path.name}", summary(path)) for path in modules]
    rows += [(f"{name}/", text) for name, text in FOLDERS.items() if (ROOT / name).exists()]
    width = max(len(name) for name, _ in rows)
    return "```\n" + "".join(f"{name:{width}}  {text}".rstrip() + "\n" for name, text in rows) + "```\n"


# File -> its generated parts, in any order.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"quality": quality, "speed": speed, "bars": bars, "tree": tree},
    "docs/guides/generate.md": {"cpu": rows("cpu")},
    "docs/guides/kv-cache.md": {"kv": rows("kv")},
    "docs/guides/serving.md": {"engine": rows("engine"), "server": rows("server")},
    "docs/guides/fine-tuning.md": {"lora": rows("lora")},
    "docs/guides/evaluation.md": {"evals": rows("evals")},
    "docs/guides/lab.md": {"lab": rows("lab")},
}


def generated(page: str, text: str) -> str:
    """A page's text with every generated part made anew.

    Raises:
        SystemExit: a part that nobody makes, or one of the page's that has no place.
    """
    parts = PAGES[page]
    names = [found["name"] for found in MARKED.finditer(text)]
    if sorted(names) != sorted(parts):
        raise SystemExit(f"{page}: generated parts are {sorted(names)}, expected {sorted(parts)}")

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- generated: {name} -->\n{parts[name]()}<!-- end: {name} -->"

    return MARKED.sub(fill, text)


def main(root: Path = ROOT) -> int:
    """Write the pages below a folder, or with `--check` exit with 1 if one is stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is stale")
    args = parser.parse_args()
    texts = {page: (root / page).read_text() for page in PAGES}
    stale = {page: new for page, old in texts.items() if (new := generated(page, old)) != old}
    if args.check and stale:
        print(f"{', '.join(stale)}: stale; run: python scripts/readme.py", file=sys.stderr)
        return 1
    if not args.check:
        for page, new in stale.items():
            (root / page).write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
