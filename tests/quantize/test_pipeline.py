"""The conversion's choices: methods, encoders, keeps, budgets, references, the second plan, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import quick
import random_models
from optiq.errors import InputError, ModelError
from optiq.models import shards
from optiq.plan import table
from optiq.plan.budget import Budget
from optiq.plan.options import Keep
from optiq.quantize import encode, pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one block."""
    return random_models.write(tmp_path_factory.mktemp("one") / "llama", "llama", num_hidden_layers=1)


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Converted:
    """The same model converted with the quick settings as they are."""
    return quick.converted(model, tmp_path_factory.mktemp("plain") / "out")


@pytest.mark.parametrize("sensitivity", ["kl", "static"])
def test_other_sensitivities_give_working_models(model: Path, tmp_path: Path, sensitivity: str) -> None:
    done = quick.converted(model, tmp_path / "out", sensitivity=sensitivity, encoder="rtn")
    quick.assert_close(quick.logits(done.path), quick.stock_logits(done.path))
    assert 5.3 <= done.plan["bpw"] <= 5.6
    facts = table.load(done.path).facts
    assert facts["method"] == sensitivity
    assert facts["metric"] == ("kl_nats_per_token" if sensitivity == "kl" else "relative_score")
    assert (done.plan["predicted_kl"] is None) == (sensitivity == "static")
    assert done.plan["measured"]["mean"] > 0


def test_measuring_alone_leaves_the_table_of_a_conversion(model: Path, plain: pipeline.Converted, tmp_path: Path) -> None:
    done = quick.converted(model, tmp_path / "out", measure_only=True)
    assert [entry.name for entry in done.path.iterdir()] == ["sensitivity.json"] and done.plan["tensors"] > 0
    found, whole = table.load(done.path), table.load(plain.path)
    assert found.items == whole.items and found.fixed_bytes == whole.fixed_bytes
    again = quick.converted(model, tmp_path / "out", measure_only=True, overwrite=True)
    assert table.load(again.path).items == found.items


def test_static_without_verification_runs_no_model_at_all(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optiq.quantize.pipeline.text", lambda *_: pytest.fail("text was asked for"))
    done = quick.converted(model, tmp_path / "out", sensitivity="static", encoder="search", verify=False)
    assert done.plan["measured"] is None
    quick.assert_close(quick.logits(done.path), quick.stock_logits(done.path))


def test_measured_sensitivities_are_the_divergence_of_one_changed_tensor(model: Path, tmp_path: Path) -> None:
    """One option of one tensor again, by hand: stock codes in that tensor alone, and the KL to the dense logits."""
    from dataclasses import replace

    from optiq.measure.divergence import kl
    from optiq.models.checkpoint import Checkpoint
    from optiq.models.stream import Stream
    from optiq.quantize.settings import Settings
    from optiq.quantize.workspace import text

    done = quick.converted(model, tmp_path / "out", sensitivity="kl", encoder="rtn", verify=False)
    source = Checkpoint.open(model)
    ids = mx.array(text(Settings(str(model), tmp_path, calibration_samples=2, calibration_length=32), source).calibration.ids)
    for name in ("model.layers.0.mlp.down_proj", "lm_head", "model.embed_tokens"):
        item = next(item for item in table.load(done.path).items if item.name == name)
        index = next(i for i, option in enumerate(item.options) if (option.bits, option.group_size) == (4, 64))

        def coded(path: str, value: mx.array, name: str = name) -> mx.array:
            if path != f"{name}.weight":
                return value
            return mx.dequantize(*mx.quantize(value.astype(mx.bfloat16), 64, 4), 64, 4).astype(mx.float32)

        both = [Stream(c, whole=True).tail(mx.zeros((1, 1, 1)), ids) for c in (source, replace(source, transform=coded))]
        assert item.damage[index] == pytest.approx(float(kl(*both)[0].mean()), rel=0.02)


def test_encoders_and_their_receipts(model: Path, plain: pipeline.Converted, tmp_path: Path) -> None:
    measured = {"gptq": plain.plan["measured"]["mean"]}
    for encoder in ("rtn", "search"):
        done = quick.converted(model, tmp_path / encoder, encoder=encoder, target_bpw=5.6)
        assert {choice["encoder"] for choice in done.plan["choices"]} <= {encoder, "rtn"}
        quick.assert_close(quick.logits(done.path), quick.stock_logits(done.path))
        measured[encoder] = done.plan["measured"]["mean"]
    assert measured["gptq"] < measured["rtn"] and measured["search"] < measured["rtn"], measured
    assert "gptq" in {choice["encoder"] for choice in plain.plan["choices"]}


def test_rtn_stores_what_mlx_would(model: Path, tmp_path: Path) -> None:
    done = quick.converted(model, tmp_path / "out", encoder="rtn", verify=False)
    source, stored = mx.load(str(model / "model.safetensors")), mx.load(str(done.path / "model.safetensors"))
    for choice in done.plan["choices"]:
        expected = mx.quantize(source[f"{choice['name']}.weight"], choice["group_size"], choice["bits"])
        for leaf, value in zip(("weight", "scales", "biases"), expected, strict=True):
            assert mx.array_equal(stored[f"{choice['name']}.{leaf}"], value), f"{choice['name']}.{leaf}"


def test_slices_of_a_tensor_give_the_codes_of_the_whole(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static: dict[str, Any] = {"sensitivity": "static", "encoder": "search", "candidate_bits": (4, 5), "verify": False}
    whole = quick.converted(model, tmp_path / "whole", target_bpw=5.2, **static)
    monkeypatch.setattr(encode, "SLICE_WEIGHTS", 1000)
    sliced = quick.converted(model, tmp_path / "sliced", target_bpw=5.2, **static)
    assert quick.digests(sliced.path)["model.safetensors"] == quick.digests(whole.path)["model.safetensors"]


def test_without_refit_other_codes_are_stored(model: Path, plain: pipeline.Converted, tmp_path: Path) -> None:
    done = quick.converted(model, tmp_path / "out", refit=False)
    assert [c["bits"] for c in done.plan["choices"]] == [c["bits"] for c in plain.plan["choices"]]
    assert quick.digests(done.path)["model.safetensors"] != quick.digests(plain.path)["model.safetensors"]


def test_keeps_pin_tensors(model: Path, tmp_path: Path) -> None:
    keep = (Keep("lm_head", 8), Keep("*.down_proj", 16), Keep("*.q_proj", 3))
    done = quick.converted(model, tmp_path / "out", keep=keep, target_bpw=8.5)
    bits = {choice["name"]: choice["bits"] for choice in done.plan["choices"]}
    assert bits["lm_head"] == 8
    assert bits["model.layers.0.mlp.down_proj"] == 16 and bits["model.layers.0.self_attn.q_proj"] == 3
    config = json.loads((done.path / "config.json").read_text())
    assert config["quantization"]["model.layers.0.mlp.down_proj"] is False
    header = shards.read_header(done.path / "model.safetensors")
    assert header["model.layers.0.mlp.down_proj.weight"].dtype == "BF16"
    source, stored = (mx.load(str(p / "model.safetensors")) for p in (model, done.path))
    name = "model.layers.0.mlp.down_proj.weight"
    assert mx.array_equal(source[name], stored[name])
    quick.assert_close(quick.logits(done.path), quick.stock_logits(done.path))


def test_like_another_directory_spends_its_bytes_and_no_more(model: Path, plain: pipeline.Converted, tmp_path: Path) -> None:
    size = (plain.path / "model.safetensors").stat().st_size
    settings = {"candidate_bits": (2, 3, 4, 5, 6, 8), "group_sizes": (32, 64, 128), "encoder": "rtn", "verify": False}
    done = quick.converted(model, tmp_path / "out", budget=Budget("like", size), **settings)
    total = done.plan["bytes"]["total_files"]
    assert 0.995 * size <= total + 200 and total <= size  # 200 bytes: the header is counted as if every name were at its longest
    assert done.plan["budget"]["value"] == size


def test_a_budget_in_gigabytes_covers_the_whole_file(model: Path, tmp_path: Path) -> None:
    done = quick.converted(model, tmp_path / "out", budget=Budget("gb", 0.00006), encoder="rtn", verify=False)
    assert 50_000 < done.plan["bytes"]["total_files"] <= 60_000
    assert done.plan["budget"]["kind"] == "gb"


def test_an_impossible_budget_states_the_smallest_possible(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"smallest possible is \d+ bytes \(\d\.\d+ bits per weight\)"):
        quick.converted(model, tmp_path / "out", target_bpw=2.0, sensitivity="static", encoder="rtn", verify=False)
    assert not (tmp_path / "out").exists()


def test_a_wrong_prediction_leads_to_a_second_plan_and_the_better_one_is_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "DISAGREEMENT", 1.0001)
    done = quick.converted(model, tmp_path / "out", encoder="rtn", target_bpw=5.0, work=tmp_path / "work")
    note = next(note for note in done.plan["notes"] if "the second plan measured" in note)
    second, first = (float(note.split(word)[1].split()[0]) for word in ("second plan measured ", "nats against "))
    assert note.endswith("was taken") == (second < first)
    assert done.plan["measured"]["measured_dev"] == pytest.approx(min(first, second), abs=1e-5)
    assert len(list((tmp_path / "work").glob("relinearised-*/done.json"))) == 1
    quick.assert_close(quick.logits(done.path), quick.stock_logits(done.path))


def test_a_simulated_uniform_reference_is_named_and_used(model: Path, tmp_path: Path) -> None:
    done = quick.converted(model, tmp_path / "out", reference="uniform_4bit", encoder="rtn")
    assert done.plan["measured"]["reference"] == "uniform_4bit"
    assert any("uniform 4-bit model, as asked" in note for note in done.plan["notes"])
    metadata = table.read_metadata(done.path)
    assert metadata is not None and metadata["reference"] == "uniform_4bit"
    source, stored = (mx.load(str(p / "model.safetensors")) for p in (model, done.path))
    eight = next(choice for choice in done.plan["choices"] if choice["bits"] == 8)  # codes come from the source all the same
    expected = mx.quantize(source[f"{eight['name']}.weight"], eight["group_size"], 8)[0]
    assert mx.array_equal(stored[f"{eight['name']}.weight"], expected)


def test_baselines_stand_beside_the_result(tiny_model: Path, tmp_path: Path) -> None:
    """A random model with a real tokenizer, which stock mlx-lm asks for, and so with the packaged text."""
    model = random_models.write(tmp_path / "model", "llama", num_hidden_layers=1, vocab_size=4096)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (model / name).write_bytes((tiny_model / name).read_bytes())
    done = quick.converted(model, tmp_path / "out", encoder="rtn", target_bpw=5.0, baselines=True)
    assert [row["name"] for row in done.plan["baselines"]] == ["out-uniform-4bit", "out-uniform-5bit"]
    for row in done.plan["baselines"]:
        assert (tmp_path / row["name"] / "model.safetensors").stat().st_size == row["bytes"]
        assert row["kl_mean"] > 0 and row["ci95"][0] <= row["kl_mean"] <= row["ci95"][1]
    assert len(done.plan["measured"]["by_domain"]) == 6
    assert (done.path / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


def test_a_baseline_that_stock_mlx_lm_cannot_make_costs_nobody_the_result(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = quick.converted(model, tmp_path / "out", encoder="rtn", baselines=True)
    assert done.plan["baselines"] == [] and done.plan["measured"]["mean"] > 0
    warnings = [record.getMessage() for record in caplog.records if "uniform" in record.getMessage()]
    assert len(warnings) == 2 and all("stock mlx-lm cannot write" in line and "\n" not in line for line in warnings)


def test_the_work_directory_serves_another_budget(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quick.converted(model, tmp_path / "first", work=tmp_path / "work", encoder="rtn")
    monkeypatch.setattr("optiq.measure.walk.backward", lambda *_, **__: pytest.fail("the gradient pass ran again"))
    second = quick.converted(model, tmp_path / "second", work=tmp_path / "work", encoder="rtn", target_bpw=7.0)
    assert first.plan["bpw"] < 5.6 < second.plan["bpw"] <= 7.0
    assert second.plan["measured"]["mean"] < first.plan["measured"]["mean"]


def test_an_existing_output_is_kept_unless_overwriting_is_asked_for(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    settings = {"sensitivity": "static", "encoder": "rtn", "verify": False}
    with pytest.raises(InputError, match=r"out exists already.*--overwrite"):
        quick.converted(model, tmp_path / "out", **settings)
    with pytest.raises(InputError, match=r"out is not a model directory.*--overwrite does not replace it"):
        quick.converted(model, tmp_path / "out", overwrite=True, **settings)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "out" / name).write_bytes((model / name).read_bytes())
    quick.converted(model, tmp_path / "out", overwrite=True, **settings)
    assert not (tmp_path / "out" / "mine.txt").exists() and (tmp_path / "out" / "config.json").exists()


def test_a_quantized_source_is_refused(plain: pipeline.Converted, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is quantized already"):
        quick.converted(plain.path, tmp_path / "out")


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    model = random_models.write(tmp_path / "model", "llama", num_hidden_layers=1)
    weights = mx.load(str(model / "model.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = mx.where(mx.arange(64) == 3, mx.nan, weights[name]).astype(mx.bfloat16)
    mx.eval(weights)
    mx.save_safetensors(str(model / "model.safetensors"), dict(weights))
    with pytest.raises(ModelError, match=rf"{name} holds 128 values that are NaN or infinite"):
        quick.converted(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sensitivity": "magic"}, "--sensitivity 'magic' is not one of fisher, kl, static"),
        ({"encoder": "awq"}, "--encoder 'awq' is not one of rtn, search, gptq"),
        ({"reference": "fp8"}, "--reference 'fp8' is not one of auto, bf16, uniform_4bit"),
        ({"calibration_samples": 0}, "--calibration-samples 0: expected a positive number"),
        ({"calibration_length": -1}, "--calibration-length -1: expected a positive number"),
        ({"target_bpw": -1.0}, "the budget must be a positive number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model: Path, tmp_path: Path, changes: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=message):
        quick.converted(model, tmp_path / "out", **changes)


def test_float16_checkpoints_stay_float16(tmp_path: Path) -> None:
    model = random_models.write(tmp_path / "model", "llama", num_hidden_layers=1)
    weights = {name: value.astype(mx.float16) for name, value in mx.load(str(model / "model.safetensors")).items()}
    mx.eval(weights)
    mx.save_safetensors(str(model / "model.safetensors"), weights)
    done = quick.converted(model, tmp_path / "out", encoder="rtn", verify=False)
    header = shards.read_header(done.path / "model.safetensors")
    assert header["lm_head.scales"].dtype == "F16" and header["model.norm.weight"].dtype == "F16"


def test_a_model_whose_axes_no_group_size_divides_keeps_them_in_bf16(shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "stories260K-hf"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    done = quick.converted(source, tmp_path / "out", target_bpw=9.0, calibration_samples=1, encoder="rtn")
    note = next(note for note in done.plan["notes"] if "bf16" in note)
    assert "no group size of 32, 64 divides the last axis" in note
    kept = [choice for choice in done.plan["choices"] if choice["bits"] == 16]
    assert kept and all(choice["shape"][-1] % 32 for choice in kept)
    quick.assert_close(quick.logits(done.path), quick.stock_logits(done.path))
    assert np.isfinite(done.plan["measured"]["mean"])
