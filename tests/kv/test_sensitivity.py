"""Damages of keys and values, the plan that they lead to, and the command that writes it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.cli.main import main
from optiq.kv import allocation, sensitivity, study, table
from optiq.kv.config import STATISTICS, read_config
from optiq.kv.recipe import FULL, preset
from optiq.kv.rows import Statistics
from optiq.kv.sensitivity import LayerDamage
from optiq.kv.text import rows
from optiq.models.checkpoint import Checkpoint
from optiq.models.load import load_modules
from optiq.models.parts import Parts

WIDTHS = (2, 4, 8)


@pytest.fixture(scope="module")
def parts(tiny_model: Path) -> Iterator[Parts]:
    """The embedded model in parts."""
    with Parts(load_modules(tiny_model)[0]) as found:
        yield found


@pytest.fixture(scope="module")
def ids(tiny_model: Path) -> np.ndarray:
    """Two rows of calibration text."""
    return rows(Checkpoint.open(tiny_model), 128, 2).ids


@pytest.fixture(scope="module")
def found(parts: Parts, ids: np.ndarray) -> list[LayerDamage]:
    """Damages of scheme best without statistics."""
    moments = sensitivity.gather(parts, ids, mx.bfloat16)
    return sensitivity.measure(parts, ids, preset("best", 8), WIDTHS, moments, {}, mx.bfloat16)


def test_damages_fall_with_the_width(found: list[LayerDamage]) -> None:
    assert [entry.layer.index for entry in found] == [3, 7]
    assert [(entry.heads, entry.k_width, entry.v_width) for entry in found] == [(2, 64, 64)] * 2
    for entry in found:
        for side in (entry.keys, entry.values):
            assert side[2] > 3 * side[4] > 9 * side[8] > 0


def test_a_damage_is_the_divergence_of_that_side_alone(parts: Parts, ids: np.ndarray, found: list[LayerDamage]) -> None:
    """By hand, with whole passes."""
    from optiq.kv.simulation import make_caches

    recipe = dataclasses.replace(preset("best", 4), k_bits=FULL)
    total = 0.0
    for row in ids:
        logits = [
            np.array(
                parts.logits(mx.array(row[None]), make_caches(parts, mx.bfloat16, r, {}, True), mx.arange(128))[0][0], np.float64
            )
            for r in ({}, {7: recipe})
        ]
        p, q = (
            x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True) for x in logits
        )
        total += float((np.exp(p) * (p - q)).sum(-1).mean())
    np.testing.assert_allclose(found[1].values[4], total / 2, rtol=0.02)


def test_the_budget_is_kept_and_spent_where_it_pays(found: list[LayerDamage]) -> None:
    base = preset("best", 8)
    for target in (2, 3.5, 4.5, 5, 8):
        plan, recipes = allocation.solve(found, base, target)
        assert table.mean_bits(found, recipes) <= target
        assert plan.bytes == sum(
            2 * (64 * bits // 8 + 2) for recipe in recipes.values() for bits in (recipe.k_bits, recipe.v_bits)
        )
    plan, recipes = allocation.solve(found, base, 5)
    assert plan.damage <= sum(side[4] for entry in found for side in (entry.keys, entry.values))
    assert table.mean_bits(found, recipes) > 4.4


def test_affine_layers_have_one_width(found: list[LayerDamage]) -> None:
    _, recipes = allocation.solve(found, preset("affine", 8), 6)
    assert sorted((recipe.k_bits, recipe.v_bits) for recipe in recipes.values()) == [(4, 4), (8, 8)]


def test_predictions_add_up(parts: Parts, ids: np.ndarray, found: list[LayerDamage]) -> None:
    plan, recipes = allocation.solve(found, preset("best", 8), 4)
    packed, decoding = sensitivity.measure_plan(parts, ids, recipes, {}, mx.bfloat16)
    assert 0.4 < packed / plan.damage < 2.5 and decoding < packed


def test_statistics_are_kept_where_they_pay(parts: Parts, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    moments, best = sensitivity.gather(parts, ids, mx.bfloat16), preset("best", 3)
    words = (parts, ids[0], best, 3, moments, mx.bfloat16)
    for m in moments.values():  # tried, for it promises much; and makes vectors longer
        assert m.value is not None
        m.value += 100.0 * m.tokens
    assert all(known.value_mean is None for known in sensitivity.choose_statistics(*words).values())
    monkeypatch.setattr(sensitivity, "LEAST_GAIN", -1e9)
    moments = sensitivity.gather(parts, ids, mx.bfloat16)
    chosen = sensitivity.choose_statistics(parts, ids[0], best, 3, moments, mx.bfloat16)
    for index, known in chosen.items():
        assert known.key_scale is None or known.key_mean is not None
        assert index in (3, 7)


def test_a_mean_pays_where_keys_lie_far_from_zero(tmp_path: Path) -> None:
    """A bias of the keys alone: no score changes, and their codes get all the worse."""
    model, _ = load_modules(random_models.write(tmp_path / "llama", "llama"))
    model.set_dtype(mx.float32)
    text = np.random.default_rng(0).integers(3, 120, (1, 100))
    for layer in model.model.layers:
        project, attention = layer.self_attn.k_proj, layer.self_attn
        attention.rope = _Still()  # so that the bias is the same at each position
        attention.k_proj = lambda x, project=project: project(x) + 3.0
    with Parts(model) as parts:
        moments = sensitivity.gather(parts, text, mx.float32)
        known = sensitivity.choose_statistics(parts, text[0], preset("best", 3), 3, moments, mx.float32)
        assert sorted(known) == [0, 1, 2] and all(found.key_mean is not None for found in known.values())
        damages = [
            sensitivity.measure(parts, text, preset("best", 3), (3,), moments, some, mx.float32)[0].keys[3]
            for some in ({}, known)
        ]
        assert damages[1] < 0.2 * damages[0]


class _Still:
    """A rotation by nothing, which does not say how many channels it turns: caches look for no mean by themselves."""

    def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
        return x


def test_probed_positions() -> None:
    np.testing.assert_array_equal(sensitivity.probe_positions(8, 10), np.arange(8))
    few = sensitivity.probe_positions(4096, sensitivity.LOGIT_FLOATS // 64)
    assert len(few) == 64 and few[-1] == 4095 and few[0] == 63


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json", "--events", "quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def test_from_the_command_to_a_reply(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kv"
    words = ["kv-cache", str(tiny_model), "--target-bits", "4.5", "--seq-len", "96", "--n-samples", "1", "-o", str(out)]
    told = run(capsys, *words)
    assert told["mean_bits"] <= 4.5 and told["tokens"]["rows"] == 1 and told["tokens"]["length"] == 96
    assert told["bytes_per_token"] < told["full_bytes_per_token"] == 1024
    entries = json.loads((out / "kv_config.json").read_text())
    assert [entry["layer_idx"] for entry in entries] == [3, 7]
    assert all(entry["bits"] == max(entry["k_bits"], entry["v_bits"]) and entry["scheme"] == "best" for entry in entries)
    rows_ = json.loads((out / "kv_sensitivity.json").read_text())
    assert [(row["layer_idx"], row["n_kv_heads"], row["head_dim"]) for row in rows_] == [(3, 2, 64), (7, 2, 64)]
    assert rows_[0]["layer_name"] == "language_model.model.layers.3" and set(rows_[0]["sensitivities"]) == {"4", "8"}
    assert rows_[0]["sensitivities"]["4"] == pytest.approx(rows_[0]["keys"]["4"] + rows_[0]["values"]["4"])
    curve = json.loads((out / "kv_curve.json").read_text())
    bits, kls = ([point[name] for point in curve["points"]] for name in ("bits", "predicted_kl"))
    assert (bits[0], bits[-1]) == (4, 8) and bits == sorted(bits) and kls == sorted(kls, reverse=True)
    assert curve["full_bytes_per_token"] == 1024 and curve["points"][-1]["layers"] == {"3": [8, 8], "7": [8, 8]}
    again = run(capsys, *words[:2], "--target-bits", "6", *words[4:8], "--from", str(out), "-o", str(tmp_path / "six"))
    assert again["mean_bits"] <= 6 and again["layers"][0]["keys"] == rows_[0]["keys"] and again["measured_kl"]["packed"] > 0
    reply = ["generate", str(tiny_model), "--prompt", "The sea", "--max-tokens", "4", "--temp", "0", "--kv-config", str(out)]
    assert run(capsys, *reply)["text"]
    assert main([*words, "--events", "quiet"]) == 2
    assert "kv_config.json exists already; choose another -o, or pass --overwrite" in capsys.readouterr().err
    (out / STATISTICS).write_bytes(b"old")
    plain = run(capsys, *words, "--overwrite", "--scheme", "affine")
    entries = json.loads((out / "kv_config.json").read_text())
    assert [set(entry) for entry in entries] == [{"layer_idx", "bits", "group_size"}] * 2
    assert not (out / STATISTICS).exists() and plain["scheme"] == "affine"
    assert read_config(out).recipes[3] == preset("affine", entries[0]["bits"])


def test_damages_of_another_model_are_refused(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["kv-cache", str(tiny_model), "--seq-len", "64", "--n-samples", "1", "-o", str(tmp_path / "o"), "--events", "quiet"]
    assert main([*words, "--from", str(tmp_path)]) == 2
    assert "kv_sensitivity.json is not there; give --from a directory that optiq kv-cache wrote" in capsys.readouterr().err
    (tmp_path / "kv_sensitivity.json").write_text('[{"layer_idx": 1}]')
    assert main([*words, "--from", str(tmp_path)]) == 2
    assert "is of layers [1], this model has caches in [3, 7]" in capsys.readouterr().err


def test_the_table_for_people(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--candidate-bits", "3,4", "--scheme", "turbo", "--seq-len", "64", "--n-samples", "1", "-o", str(tmp_path / "kv")]
    assert main(["kv-cache", str(tiny_model), "--target-bits", "3.5", *words]) == 0
    shown = capsys.readouterr()
    assert "layer  side    KL at 3 bits  KL at 4 bits  chosen" in shown.out
    assert "mean width    3.500 bits, at most 3.5 asked for" in shown.out
    assert "1 rows of 64 tokens, 2 layers with a key/value cache; expected: about" in shown.err


def test_statistics_go_to_their_file(tmp_path: Path, found: list[LayerDamage]) -> None:
    known = {7: Statistics(key_mean=mx.ones((2, 64)))}
    settings = study.Settings("x", tmp_path / "kv")
    _, recipes = allocation.solve(found, preset("best", 8), 5)
    study.write(settings, recipes, known, found, preset("best", 8))
    assert read_config(tmp_path / "kv").known[7].key_mean is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--candidate-bits", "4,x"], "--candidate-bits '4,x' is not a list of integers; try --candidate-bits 4,8"),
        (["--candidate-bits", "4,7"], "--candidate-bits is 7, which scheme best does not have; expected one of 2, 3, 4, 5, 6, 8"),
        (["--scheme", "turbo"], "--candidate-bits is 8, which scheme turbo does not have; expected one of 1, 2, 3, 4"),
        (["--target-bits", "3"], "--target-bits is 3, expected at least 4, the smallest of --candidate-bits"),
        (["--target-bits", "nan"], "--target-bits is nan, expected at least 4, the smallest of --candidate-bits"),
        (["--group-size", "48"], "--group-size is 48, expected one of 32, 64, 128"),
        (["--n-samples", "0"], "--n-samples is 0, expected at least 1"),
        (["--seq-len", "8"], "--seq-len is 8, expected at least 32"),
        (["-o", __file__], f"{__file__} is no directory; choose another -o"),
    ],
)
def test_wrong_arguments_are_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["kv-cache", str(tiny_model), "-o", str(tmp_path / "kv"), *words]) == 2
    assert capsys.readouterr().err == f"optiq: error: {message}\n"
    assert not (tmp_path / "kv").exists()


def test_models_without_caches_or_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latents = random_models.write(tmp_path / "mla", "deepseek_v3")
    assert main(["kv-cache", str(latents), "-o", str(tmp_path / "kv")]) == 2
    assert "this model caches MLA latents, which are compressed already" in capsys.readouterr().err
    model = random_models.write(tmp_path / "gemma", "gemma3")
    words = ["kv-cache", str(model), "-o", str(tmp_path / "kv"), "--seq-len", "48", "--n-samples", "1"]
    assert main([*words, "--events", "quiet"]) == 0
    assert "the model has no tokenizer: the text was sampled from the model itself" in capsys.readouterr().err
    assert sorted(read_config(tmp_path / "kv").recipes) == [0, 1, 2]
