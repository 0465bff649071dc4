"""The model card: `README.md` of a converted directory, every number from the run's own receipts.

Takes the dicts of `plan.json`, `optiq/metadata.json` and `config.json`; reads and writes no files. What the run did
not measure is not claimed. Beside the documented fields the card uses these of the metadata, where present: ``name``
(title), ``sensitivity`` (fisher, kl, static), ``calibration`` ({domains, samples, tokens}), ``left_out``
({kind: tensors}, for instance vision), ``mtp`` ({bits, group_size}).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from optiq.files import size_text

SENSITIVITIES = {
    "fisher": "second-order prediction of the KL divergence from one backward pass (labels sampled from the model)",
    "kl": "KL divergence measured with one tensor quantized at a time",
    "static": "rules from the position and the kind of a tensor, no measurement",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PLAIN_YAML = re.compile(r"[A-Za-z][\w./-]*")


def card(plan: Mapping[str, Any], metadata: Mapping[str, Any], config: Mapping[str, Any], base_license: str | None) -> str:
    """The text of the model card.

    Args:
        plan: content of `plan.json`; ``measured`` is None where verification was switched off.
        metadata: content of `optiq/metadata.json`; see the module's docstring for the optional fields.
        config: content of `config.json`.
        base_license: the base model's licence as its own card names it, None where it is not known.
    """
    sections = [
        _front_matter(plan, metadata, config, base_license),
        _opening(plan, metadata),
        _details(plan, metadata, config),
        _usage(_title(plan, metadata)),
        _speculation(metadata, config) if _mtp(config) else "",
        _benchmarks(plan),
        _notes(plan, metadata),
        _quantize_your_own(plan, metadata),
        _licence(base_license),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(
    plan: Mapping[str, Any], metadata: Mapping[str, Any], config: Mapping[str, Any], base_license: str | None
) -> str:
    base, model_type = _base(plan, metadata), str(config.get("model_type") or "")
    widths = [f"{bits}bit" for bits in sorted(_count(plan, "bits")) if bits < 16]
    tags = ["mlx", "quantized", "mixed-precision", *widths, "optiq", "text-generation"]
    tags += [model_type] if model_type else []
    lines = ["---", "library_name: mlx"]
    lines += [f"license: {_yaml(base_license)}"] if base_license else []
    lines += ["pipeline_tag: text-generation"]
    if _HUB_ID.fullmatch(base):
        lines += [f"base_model: {_yaml(base)}", "base_model_relation: quantized"]
    lines += ["tags:", *(f"- {_yaml(tag)}" for tag in tags), "---"]
    return "\n".join(lines)


def _opening(plan: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    base = _base(plan, metadata)
    linked = f"[{base}](https://huggingface.co/{base})" if _HUB_ID.fullmatch(base) else f"`{_short(base)}`"
    signal = (
        "from rules about its place and kind"
        if metadata.get("sensitivity") == "static"
        else "from what each width is predicted to cost in KL divergence"
    )
    return (
        f"# {_title(plan, metadata)}\n\n"
        f"A {_predominant(plan)}-bit mixed-precision MLX quant of {linked}, made by `optiq convert`. "
        f"An exact solver chose the width of every tensor under a budget, {signal}. "
        f"The files are stock MLX: they load in an unmodified `mlx-lm`.\n\n"
        f"> optiq is an independent project. It is not affiliated with, nor endorsed by, mlx-optiq or the makers "
        f"of the base model."
    )


def _details(plan: Mapping[str, Any], metadata: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    choices = plan.get("choices", [])
    quantized = [choice for choice in choices if choice["bits"] < 16]
    rows = [("Predominant precision", f"{_predominant(plan)}-bit")]
    for bits in sorted({choice["bits"] for choice in choices}, reverse=True):
        of_width = [choice for choice in choices if choice["bits"] == bits]
        share = sum(map(_params, of_width)) / max(sum(map(_params, choices)), 1)
        label = f"Layers at {bits}-bit" if bits < 16 else "Layers left in bf16"
        rows.append((label, f"{len(of_width)} ({100 * share:.1f} % of the weights)"))
    rows += [
        ("Total quantized layers", str(len(quantized))),
        ("Group sizes", _counted(_count(plan, "group_size", quantized))),
        ("Bits per weight", f"{plan['bpw']:.3f} (codes, scales and biases; embeddings and head included)"),
        ("Budget", _budget(plan.get("budget", {}))),
        ("Size of the model files", size_text(plan["bytes"]["total_files"])),
    ]
    encoders = _count(plan, "encoder", quantized)
    rows += [("Encoder", _counted(encoders))] if encoders else []
    method = str(metadata.get("sensitivity") or "")
    rows += [("Sensitivity", f"{method}: {SENSITIVITIES[method]}")] if method in SENSITIVITIES else []
    rows += [("Calibration mix", text)] if (text := _calibration(metadata.get("calibration"))) else []
    rows += [("Reference for sensitivity", str(metadata["reference"]))] if metadata.get("reference") else []
    if plan.get("predicted_kl") is not None and method != "static":
        rows.append(("Predicted KL", f"{plan['predicted_kl']:.5f} nats per token"))
    rows += [("Bundled MTP head", _mtp_text(metadata, config))] if _mtp(config) else []
    rows += [(f"{kind.capitalize()} tensors", f"left out ({n})") for kind, n in (metadata.get("left_out") or {}).items() if n]
    rows += [(f"Beside the model: `{name}`", size_text(size)) for name, size in plan["bytes"].get("side", {}).items()]
    naming = (
        "The label is the predominant precision, by the number of weights, not the average; the average is the line "
        '"Bits per weight".'
    )
    return f"## Quantization details\n\n{_table(('Property', 'Value'), rows)}\n\n{naming}"


def _usage(title: str) -> str:
    return f"""## Usage

```bash
pip install mlx-lm
```

```python
from mlx_lm import load, generate

model, tokenizer = load("path/to/{title}")
response = generate(
    model, tokenizer,
    prompt="Explain quantum computing in simple terms.",
    max_tokens=200,
)
```"""


def _speculation(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    return (
        "### Speculative decoding (MTP)\n\n"
        f"The base model's multi-token prediction head is bundled as {_mtp_text(metadata, config)}. `mlx-lm` itself "
        "ignores it; a runtime that drafts with it finds its keys under `mtp.*`. This run has measured neither "
        "acceptance nor speed."
    )


def _benchmarks(plan: Mapping[str, Any]) -> str:
    measured = plan.get("measured")
    if not measured:
        return "## Benchmarks\n\nKL divergence to the bf16 model: not measured (`--no-verify`)."
    low, high = measured["ci95"]
    scope = [f"{measured[key]:,} {key}" for key in ("documents", "tokens") if measured.get(key)]
    intro = (
        f"KL({measured.get('reference', 'bf16')} ‖ this model) in nats per token on held-out text "
        f"(set *{measured['set']}*"
        f"{': ' + ', '.join(scope) if scope else ''}), which no choice of this run has looked at. "
        f"The interval is a 95 % bootstrap over documents."
    )
    rows = [("KL mean (95 % interval)", f"{measured['mean']:.5f} ({low:.5f} to {high:.5f})")]
    rows += [(f"KL {name}", f"{measured[name]:.5f}") for name in ("median", "p95", "p99") if measured.get(name) is not None]
    if measured.get("top1") is not None:
        rows.append(("Top-1 agreement with bf16", f"{100 * measured['top1']:.2f} %"))
    if measured.get("predicted_dev") is not None and measured.get("measured_dev") is not None:
        pair = f"{measured['predicted_dev']:.5f} / {measured['measured_dev']:.5f}"
        rows.append(("KL predicted / measured on *dev*", pair))
    parts = ["## Benchmarks", intro, _table(("Metric", "This model"), rows, "---:")]
    parts += [_by_domain(measured["by_domain"])] if measured.get("by_domain") else []
    parts += [_baselines(plan, measured)] if plan.get("baselines") else []
    return "\n\n".join(parts)


def _by_domain(domains: Mapping[str, Any]) -> str:
    rows = []
    for domain, value in domains.items():
        mean = value.get("mean") if isinstance(value, Mapping) else value
        rows += [(domain, f"{mean:.5f}")] if mean is not None else []
    return _table(("Domain", "KL mean"), rows, "---:")


def _baselines(plan: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """This model between its baselines, by size; the ratio says whose divergence is how many times smaller."""
    own = {
        "name": "**this model**",
        "bytes": plan["bytes"]["total_files"],
        "bpw": plan["bpw"],
        "kl_mean": measured["mean"],
    }
    rows = []
    for row in sorted([{**own, "ci95": measured["ci95"]}, *plan["baselines"]], key=lambda row: int(row["bytes"])):
        interval = f"{row['ci95'][0]:.5f} to {row['ci95'][1]:.5f}" if row.get("ci95") else "not measured"
        ratio = f"{measured['mean'] / row['kl_mean']:.2f}×" if row["kl_mean"] > 0 else ""
        bpw = f"{row['bpw']:.3f}" if row.get("bpw") is not None else ""
        rows.append((row["name"], size_text(row["bytes"]), bpw, f"{row['kl_mean']:.5f}", interval, ratio))
    head = ("Model", "Size", "Bits per weight", "KL mean", "95 % interval", "KL of this model over that")
    return f"Against other quants of the same base, measured in the same run:\n\n{_table(head, rows, '---:')}"


def _notes(plan: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    lines = [str(note) for note in plan.get("notes", [])]
    if (metadata.get("left_out") or {}).get("vision") and not any("vision" in line for line in lines):
        lines.append("The base model's vision tensors are left out: this directory reads and writes text only.")
    return "## Notes\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _quantize_your_own(plan: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    base, budget = _base(plan, metadata), plan.get("budget", {})
    model = base if _HUB_ID.fullmatch(base) else f"path/to/{_short(base)}"
    flag = {"bpw": "--target-bpw", "gb": "--target-gb"}.get(str(budget.get("kind")))
    asked = f" {flag} {budget['value']}" if flag else ""
    return (
        f"## Quantize your own\n\n```bash\noptiq convert {model}{asked} -o OUT\noptiq inspect OUT\n```\n\n"
        "`optiq/plan.json`, `optiq/sensitivity.json` and `optiq/metadata.json` in this directory hold every choice and "
        "every number above."
    )


def _licence(base_license: str | None) -> str:
    text = f"{base_license} (inherits from the base model)." if base_license else "That of the base model; see its card."
    return f"## License\n\n{text}"


def _base(plan: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("base_model") or plan.get("base_model") or "unknown")


def _short(base: str) -> str:
    """The last part of a path: no folders of somebody's machine on the card."""
    return PurePath(base).name or base


def _title(plan: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("name") or f"{_short(_base(plan, metadata))}-optiq-{_predominant(plan)}bit")


def _params(choice: Mapping[str, Any]) -> int:
    product = 1
    for axis in choice["shape"]:
        product *= int(axis)
    return product


def _predominant(plan: Mapping[str, Any]) -> int:
    """The width that stores most weights, the lower one at a tie."""
    weights: Counter[int] = Counter()
    for choice in plan.get("choices", []):
        weights[int(choice["bits"])] += _params(choice)
    return min(weights, key=lambda bits: (-weights[bits], bits), default=16)


def _count(plan: Mapping[str, Any], key: str, choices: Iterable[Mapping[str, Any]] | None = None) -> Counter[Any]:
    return Counter(c[key] for c in (plan.get("choices", []) if choices is None else choices) if c.get(key) is not None)


def _counted(counts: Counter[Any]) -> str:
    return ", ".join(f"{value} ({counts[value]} layer{'s' if counts[value] > 1 else ''})" for value in sorted(counts)) or "none"


def _budget(budget: Mapping[str, Any]) -> str:
    kind, value = budget.get("kind"), budget.get("value")
    if kind == "bpw":
        return f"{value} bits per weight"
    if kind == "gb":
        return f"{value} GB of model files"
    if kind == "like":
        return f"the size of `{_short(str(value))}`" if isinstance(value, str) else f"{value} bytes of model files"
    return "not recorded"


def _calibration(calibration: Any) -> str:
    if not isinstance(calibration, Mapping):
        return ""
    domains = calibration.get("domains") or []
    parts = [f"{len(domains)} domain{'s' if len(domains) > 1 else ''} ({', '.join(map(str, domains))})"] if domains else []
    parts += [f"{calibration['samples']} samples"] if calibration.get("samples") else []
    parts += [f"{calibration['tokens']:,} tokens"] if calibration.get("tokens") else []
    return ", ".join(parts)


def _mtp(config: Mapping[str, Any]) -> str:
    return str(config.get("mtp_file") or "")


def _mtp_text(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    stored = config.get("mtplx_mtp_quantization") or metadata.get("mtp") or {}
    bits = stored.get("bits") if isinstance(stored, Mapping) else None
    return f"`{_mtp(config)}`" + (f" ({bits}-bit projections, bf16 norms)" if bits else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---") -> str:
    lines = [_row(head), "|" + "|".join(["---"] + [align] * (len(head) - 1)) + "|"]
    return "\n".join(lines + [_row(row) for row in rows])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _yaml(text: str) -> str:
    """A YAML scalar: bare where that is safe, as JSON (which YAML reads) otherwise."""
    reserved = text.lower() in ("yes", "no", "true", "false", "null", "on", "off")
    return text if _PLAIN_YAML.fullmatch(text) and not reserved else json.dumps(text, ensure_ascii=False)
