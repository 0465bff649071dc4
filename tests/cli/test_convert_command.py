"""`optiq convert` as a user types it, on the embedded model; the result in unmodified mlx-lm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["--target-bpw", "5.0", "--candidate-bits", "4,8", "--group-sizes", "64", "--encoder", "rtn"]
OPTIONS += ["--calibration-samples", "1", "--calibration-length", "32"]
STOCK = """
import json, sys
from mlx_lm import generate, load
assert "optiq" not in sys.modules
model, tokenizer = load(sys.argv[1])
pieces = [p for p in [generate(model, tokenizer, prompt="The sum of 2 and 3 is", max_tokens=5)]]
print(json.dumps({"text": pieces[0], "optiq": "optiq" in sys.modules}))
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def converted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The directory, what `--json` printed, and what stood on stderr."""
    out = tmp_path_factory.mktemp("convert") / "tiny-5bpw"
    done = run("-m", "optiq.cli", "convert", str(tiny_model), "-o", str(out), "--json", "--events", "plain", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout), done.stderr


def test_the_result_is_printed_as_json_and_is_the_plan_on_disk(converted: tuple[Path, dict[str, Any], str]) -> None:
    out, printed, progress = converted
    assert printed["output"] == str(out)
    plan = json.loads((out / "optiq" / "plan.json").read_text())
    assert {key: printed[key] for key in plan if key != "schema"} == {key: plan[key] for key in plan if key != "schema"}
    assert 4.9 < plan["bpw"] <= 5.0
    assert plan["measured"]["documents"] == 120 and len(plan["measured"]["by_domain"]) == 6
    assert "expected: about" in progress and "of memory" in progress and "of disk" in progress


def test_unmodified_mlx_lm_loads_it_and_writes(converted: tuple[Path, dict[str, Any], str]) -> None:
    done = run("-c", STOCK, str(converted[0]))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["text"].strip() and not said["optiq"]


def test_the_multi_token_head_stands_beside_the_model(converted: tuple[Path, dict[str, Any], str]) -> None:
    out, printed, _ = converted
    config = json.loads((out / "config.json").read_text())
    assert config["mtp_file"] == "mtp.safetensors"
    assert printed["bytes"]["side"] == {"mtp.safetensors": (out / "mtp.safetensors").stat().st_size}


def test_a_second_conversion_into_the_same_place_is_refused_in_one_line(
    converted: tuple[Path, dict[str, Any], str], tiny_model: Path
) -> None:
    done = run("-m", "optiq.cli", "convert", str(tiny_model), "-o", str(converted[0]))
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and "--overwrite" in done.stderr


def test_optiq_load_gives_a_model_that_generates(converted: tuple[Path, dict[str, Any], str]) -> None:
    import optiq

    model, tokenizer = optiq.load(converted[0])
    from mlx_lm import generate

    assert generate(model, tokenizer, prompt="Hello", max_tokens=3) is not None
