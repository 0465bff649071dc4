"""The model card: the agreed shape, numbers from the receipts alone, no machine paths."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from optiq.quantize.card import card


def choice(name: str, bits: int, group_size: int, rows: int = 64) -> dict[str, Any]:
    return {
        "name": name, "kind": "linear", "shape": [rows, 128], "bits": bits, "group_size": group_size, "bytes": 100,
        "damage_nats": 0.001, "encoder": "gptq" if bits < 16 else None, "block": 0,
    }  # fmt: skip


PLAN: dict[str, Any] = {
    "schema": 1,
    "base_model": "Qwen/Qwen3.5-9B",
    "budget": {"kind": "bpw", "value": 5.0, "bytes": 9000},
    "bytes": {"quantized": 9000, "fixed": 9, "header": 8, "total_files": 6_612_000_000, "side": {"mtp.safetensors": 9}},
    "bpw": 4.9987,
    "params": 1000,
    "predicted_kl": 0.0123,
    "choices": [choice("a", 4, 64), choice("b", 4, 32), choice("c", 8, 64), choice("d", 16, 0, rows=8)],
    "measured": {
        "set": "score", "documents": 60, "tokens": 30720, "mean": 0.0151, "median": 0.004, "p95": 0.06, "p99": 0.2,
        "top1": 0.9512, "ci95": [0.014, 0.0163], "by_domain": {"code": 0.01, "prose": {"mean": 0.02}},
        "predicted_dev": 0.0123, "measured_dev": 0.0149,
    },
    "baselines": [
        {"name": "uniform 4-bit", "bytes": 5_500_000_000, "bpw": 4.5, "kl_mean": 0.0604, "ci95": [0.057, 0.064]},
    ],
    "notes": ["1 tensor stays in bf16"],
}  # fmt: skip
METADATA: dict[str, Any] = {
    "base_model": "Qwen/Qwen3.5-9B",
    "reference": "bf16",
    "sensitivity": "fisher",
    "calibration": {"domains": ["prose", "code"], "samples": 80, "tokens": 40960},
    "left_out": {"vision": 333},
}
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_5",
    "mtp_file": "mtp.safetensors",
    "mtplx_mtp_quantization": {"bits": 4, "group_size": 64},
}


def test_front_matter_is_yaml() -> None:
    text = card(PLAN, METADATA, CONFIG, "apache-2.0")
    yaml = pytest.importorskip("yaml")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "mlx" and front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "text-generation" and front["base_model"] == "Qwen/Qwen3.5-9B"
    assert {"mlx", "quantized", "mixed-precision", "4bit", "8bit", "optiq", "qwen3_5"} <= set(front["tags"])


def test_every_section_and_number_comes_from_the_run() -> None:
    text = card(PLAN, METADATA, CONFIG, "apache-2.0")
    for line in (
        "# Qwen3.5-9B-optiq-4bit",
        "| Predominant precision | 4-bit |",
        "| Layers at 8-bit | 1 (32.0 % of the weights) |",
        "| Layers at 4-bit | 2 (64.0 % of the weights) |",
        "| Layers left in bf16 | 1 (4.0 % of the weights) |",
        "| Total quantized layers | 3 |",
        "| Group sizes | 32 (1 layer), 64 (2 layers) |",
        "| Bits per weight | 4.999 (codes, scales and biases; embeddings and head included) |",
        "| Budget | 5.0 bits per weight |",
        "| Size of the model files | 6.61 GB |",
        "| Encoder | gptq (3 layers) |",
        "| Calibration mix | 2 domains (prose, code), 80 samples, 40,960 tokens |",
        "| Bundled MTP head | `mtp.safetensors` (4-bit projections, bf16 norms) |",
        "| Vision tensors | left out (333) |",
        "| KL mean (95 % interval) | 0.01510 (0.01400 to 0.01630) |",
        "| KL p95 | 0.06000 |",
        "| Top-1 agreement with bf16 | 95.12 % |",
        "| KL predicted / measured on *dev* | 0.01230 / 0.01490 |",
        "| prose | 0.02000 |",
        "| uniform 4-bit | 5.5 GB | 4.500 | 0.06040 | 0.05700 to 0.06400 | 0.25× |",
        "### Speculative decoding (MTP)",
        "- 1 tensor stays in bf16",
        "- The base model's vision tensors are left out: this directory reads and writes text only.",
        "optiq convert Qwen/Qwen3.5-9B --target-bpw 5.0 -o OUT",
        "apache-2.0 (inherits from the base model).",
    ):
        assert line in text, line
    assert "not affiliated with" in text and "mlx-optiq" in text


def test_baselines_stand_in_order_of_size() -> None:
    text = card(PLAN, METADATA, CONFIG, None)
    assert text.index("| uniform 4-bit |") < text.index("| **this model** |")


def test_unmeasured_run_claims_nothing() -> None:
    plan = {**copy.deepcopy(PLAN), "measured": None}
    text = card(plan, METADATA, CONFIG, None)
    assert "not measured (`--no-verify`)" in text
    assert "KL mean" not in text and "Against other quants" not in text and "Top-1" not in text
    assert "license:" not in text and "That of the base model; see its card." in text


def test_no_section_for_what_is_not_there() -> None:
    text = card({**PLAN, "baselines": [], "notes": []}, {"base_model": "Qwen/Qwen3.5-9B"}, {"model_type": "llama"}, "mit")
    assert "MTP" not in text and "Against other" not in text and "ision tensors" not in text and "## Notes" not in text


def test_static_run_does_not_claim_a_predicted_divergence() -> None:
    text = card({**PLAN, "measured": None}, {**METADATA, "sensitivity": "static"}, CONFIG, None)
    assert "Predicted KL" not in text and "from rules about its place and kind" in text


def test_no_folder_of_a_machine_on_the_card() -> None:
    plan = {
        **PLAN,
        "base_model": "/home/someone/models/tiny",
        "budget": {"kind": "like", "value": "/home/someone/other"},
    }
    text = card(plan, {"base_model": "/home/someone/models/tiny"}, CONFIG, None)
    assert "/home" not in text and "base_model:" not in text
    assert "quant of `tiny`" in text and "| Budget | the size of `other` |" in text


def test_card_survives_json() -> None:
    again = json.loads(json.dumps(PLAN))
    assert card(again, METADATA, CONFIG, "mit") == card(PLAN, METADATA, CONFIG, "mit")
