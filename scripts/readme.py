"""Write the generated parts of README.md from `benchmarks/results/*.json` and from the tree; `--check` only compares.

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
README = ROOT / "README.md"
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
        lines = ["| what | figure | required | measured |", "|---|---:|---:|---|"]
        for row in found["bars"]:
            met = "" if row["met"] else " (not met)"
            lines.append(f"| {row['what']} | {_figure(row)}{met} | {row['direction']} {row['bar']:g} | {row['baseline']} |")
        host = found["machine"]
        lines += ["", f"{host['cpu']}, {host['cores']} cores, mlx {host['mlx']}, {found['date'][:10]}."]
        return "\n".join(lines) + "\n"

    return table


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


PARTS: dict[str, Callable[[], str]] = {
    "quality": quality,
    "cpu": rows("cpu"),
    "engine": rows("engine"),
    "evals": rows("evals"),
    "lora": rows("lora"),
    "bars": bars,
    "tree": tree,
}


def generated(text: str) -> str:
    """The README's text with every generated part made anew.

    Raises:
        SystemExit: a part that nobody makes, or one of ours that has no place.
    """
    names = [found["name"] for found in MARKED.finditer(text)]
    if sorted(names) != sorted(PARTS):
        raise SystemExit(f"{README}: generated parts are {sorted(names)}, expected {sorted(PARTS)}")

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- generated: {name} -->\n{PARTS[name]()}<!-- end: {name} -->"

    return MARKED.sub(fill, text)


def main() -> int:
    """Write the README, or with `--check` exit with 1 if it is stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if README.md is stale")
    args = parser.parse_args()
    old = README.read_text()
    new = generated(old)
    if args.check and old != new:
        print("README.md is stale; run: python scripts/readme.py", file=sys.stderr)
        return 1
    if not args.check and old != new:
        README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
