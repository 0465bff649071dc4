"""The files of `optiq bench --kv-curve`, named as the TurboQuant document names them.

benchmarks/kv/README.md             what was measured, the table of medians
benchmarks/kv/summary_rows.tsv      medians          benchmarks/kv/raw_rows.tsv     every sample
benchmarks/kv/run_metadata.json     model, machine, settings
assets/curve.png, assets/curve.svg  the picture
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optiq import files
from optiq.generate.curve import Sample
from optiq.quantize import picture

FOLDER, ASSETS = Path("benchmarks") / "kv", Path("assets")


def write(out: Path, samples: Sequence[Sample], summary: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> list[Path]:
    """Write all of them below `out`.

    Args:
        out: a directory; made where it is not there.
        samples: of `curve.measure`.
        summary: of `curve.summary`.
        about: what goes to run_metadata.json.

    Returns:
        The files.
    """
    folder, assets = out / FOLDER, out / ASSETS
    for path in (folder, assets):
        path.mkdir(parents=True, exist_ok=True)
    raw = [asdict(sample) for sample in samples]
    files.write_bytes(folder / "raw_rows.tsv", _tsv(raw))
    files.write_bytes(folder / "summary_rows.tsv", _tsv(summary))
    files.write_json(folder / "run_metadata.json", dict(about))
    files.write_bytes(folder / "README.md", page(summary, about).encode())
    title = f"{about['model']['name']}: caches of keys and values over the context"
    for name in ("curve.png", "curve.svg"):
        picture.panels(assets / name, _panels(summary), title, "tokens in the context")
    names = ("README.md", "summary_rows.tsv", "raw_rows.tsv", "run_metadata.json")
    return [*(folder / name for name in names), assets / "curve.png", assets / "curve.svg"]


def page(summary: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The README: the table of medians by length."""
    kinds = list(dict.fromkeys(row["kind"] for row in summary))
    machine = about["machine"]
    lines = [
        f"# Caches of keys and values: {about['model']['name']}",
        "",
        f"`{about['command']}`, {about['date'][:10]}; {machine['cpu']}, {machine['threads']} threads, "
        f"{machine['kernels']} kernels. Medians of {summary[0]['repeats']}. KL is against the 16-bit cache, "
        f"mean over {about['generate']} tokens after the prompt, nats per token. The picture is in `assets/`.",
        "",
    ]
    for what, key, form in (
        ("Decoding, tokens per second", "decode_tokens_per_s", "{:.1f}"),
        ("Caches, MB (recurrent states included)", "cache_bytes", "{:.3f}"),
        ("KL, nats per token", "kl_nats", "{:.2e}"),
    ):
        lines += [f"## {what}", "", "| tokens | " + " | ".join(kinds) + " |", "|---:|" + "---:|" * len(kinds)]
        for length in sorted({row["prompt_tokens"] for row in summary}):
            found = {row["kind"]: row[key] for row in summary if row["prompt_tokens"] == length}
            values = [found[kind] / 1e6 if key == "cache_bytes" else found[kind] for kind in kinds]
            lines.append(f"| {length:.0f} | " + " | ".join(form.format(value) for value in values) + " |")
        lines.append("")
    return "\n".join(lines)


def _tsv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    lines = ["\t".join(rows[0])]
    lines += ["\t".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values()) for row in rows]
    return ("\n".join(lines) + "\n").encode()


def _panels(summary: Sequence[Mapping[str, Any]]) -> list[picture.Panel]:
    def series(key: str, scale: float = 1.0) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for row in summary:
            if row[key] > 0:  # the 16-bit cache has no divergence from itself
                found.setdefault(row["kind"], []).append((row["prompt_tokens"], row[key] / scale))
        return found

    return [
        picture.Panel("tokens per second", series("decode_tokens_per_s")),
        picture.Panel("MB", series("cache_bytes", 1e6)),
        picture.Panel("KL, nats per token", series("kl_nats")),
    ]
