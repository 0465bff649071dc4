"""Every architecture of `random_models` converts, loads in stock mlx-lm, and computes there what it computes here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import quick
import random_models
from optiq.models import shards
from optiq.models.inspect import inspect
from optiq.plan import table


@dataclass(frozen=True)
class Family:
    """A source directory and what one conversion made of it."""

    source: Path
    out: Path
    plan: dict[str, Any]


SLOW = ("qwen3_5-untied", "gemma3")  # their parts are those of qwen3_5-moe and gemma3-tied
PARAMETERS = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in random_models.CONFIGS]


@pytest.fixture(scope="module", params=PARAMETERS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    source = random_models.write(folder / "source", request.param)
    done = quick.converted(source, folder / "out")
    return Family(source, done.path, done.plan)


def test_stock_mlx_lm_computes_the_same_logits(family: Family) -> None:
    quick.assert_close(quick.logits(family.out), quick.stock_logits(family.out))


def test_the_budget_is_kept_and_spent(family: Family) -> None:
    assert family.plan["bytes"]["quantized"] <= family.plan["budget"]["bytes"]
    assert 5.3 <= family.plan["bpw"] <= 5.6
    assert family.plan["bpw"] == pytest.approx(inspect(family.out).bpw, rel=1e-9)


def test_the_files_on_disk_have_the_bytes_that_the_plan_states(family: Family) -> None:
    size, file = family.plan["bytes"], family.out / "model.safetensors"
    assert size["total_files"] == file.stat().st_size
    assert size["header"] == shards.header_bytes(file)
    assert size["quantized"] + size["fixed"] + size["header"] == size["total_files"]
    assert size["quantized"] == sum(choice["bytes"] for choice in family.plan["choices"])


def test_config_and_tensors_agree_with_the_choices(family: Family) -> None:
    config = json.loads((family.out / "config.json").read_text())
    header = shards.read_header(family.out / "model.safetensors")
    for choice in family.plan["choices"]:
        entry = config["quantization"][choice["name"]]
        assert (entry["bits"], entry["group_size"]) == (choice["bits"], choice["group_size"])
        width = choice["shape"][-1]
        assert header[f"{choice['name']}.weight"].shape[-1] == width * choice["bits"] // 32
        assert header[f"{choice['name']}.scales"].shape[-1] == width // choice["group_size"]
    assert config["quantization"] == config["quantization_config"]


def test_divergence_is_predicted_and_measured(family: Family) -> None:
    measured = family.plan["measured"]
    assert family.plan["predicted_kl"] > 0 and measured["mean"] > 0
    assert measured["ci95"][0] <= measured["mean"] <= measured["ci95"][1]
    assert measured["set"] == "score" and measured["reference"] == "bf16"
    assert measured["predicted_dev"] / 4 < measured["measured_dev"] < measured["predicted_dev"] * 4


def test_receipts_are_complete_and_no_work_is_left(family: Family) -> None:
    items = table.load(family.out).items
    assert [item.name for item in items] == [choice["name"] for choice in family.plan["choices"]]
    metadata = table.read_metadata(family.out)
    assert metadata is not None and metadata["achieved_bpw"] == family.plan["bpw"]
    assert table.read_plan(family.out) == family.plan
    assert (family.out / "README.md").read_text().startswith("---")
    assert sorted(path.name for path in family.out.parent.iterdir()) == ["out", "source"]
    assert any("sampled from the model itself" in note for note in family.plan["notes"])
