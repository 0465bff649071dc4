"""Adapter directories: both formats, what is read of them, and one clear line for each that does not fit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from adapter_files import paths, write_mlx, write_peft
from optiq.errors import FormatError, InputError, OptiqError
from optiq.lora.adapters import load_adapter

Q = "language_model.model.layers.3.self_attn.q_proj"
Z = "language_model.model.layers.0.linear_attn.in_proj_z"


def retell(path: Path, **config: Any) -> None:
    """Change entries of a directory's config; None takes one out."""
    file = path / "adapter_config.json"
    told = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({key: value for key, value in told.items() if value is not None}))


def rewrite(path: Path, change: Callable[[dict[str, mx.array]], Any]) -> None:
    """Change a directory's tensors."""
    file = next(path.glob("*.safetensors"))
    tensors = dict(mx.load(str(file)))
    change(tensors)
    mx.eval(tensors)
    mx.save_safetensors(str(file), tensors)


def test_both_formats_say_the_same(plain: Any, tmp_path: Path) -> None:
    modules = paths(plain, "q_proj", "in_proj_z")
    peft = load_adapter(write_peft(tmp_path / "peft", plain, modules, rank=4, seed=5, use_dora=True), plain)
    ours = load_adapter(write_mlx(tmp_path / "mlx", plain, modules, rank=4, seed=5, fine_tune_type="dora"), plain)
    assert peft.parts.keys() == ours.parts.keys() == set(modules)
    for one, two in zip(peft.parts.values(), ours.parts.values(), strict=True):
        assert one.scale == two.scale == 2.0
        for a, b in ((one.a, two.a), (one.b, two.b), (one.magnitude, two.magnitude)):
            np.testing.assert_array_equal(np.array(a), np.array(b))
    assert peft.sha256 != ours.sha256 and len(peft.sha256) == 64


def test_scales(plain: Any, tmp_path: Path) -> None:
    path = write_peft(tmp_path, plain, [Q, Z], rank=4, lora_alpha=12)
    assert {part.scale for part in load_adapter(path, plain).parts.values()} == {3.0}
    before = load_adapter(path, plain).sha256
    retell(path, use_rslora=True)
    assert {part.scale for part in load_adapter(path, plain).parts.values()} == {6.0}
    assert load_adapter(path, plain).sha256 != before
    retell(path, use_rslora=False, alpha_pattern={"q_proj": 2})
    assert load_adapter(path, plain).parts[Q].scale == 0.5 and load_adapter(path, plain).parts[Z].scale == 3.0


def test_ranks_by_module(plain: Any, tmp_path: Path) -> None:
    path = write_peft(tmp_path / "peft", plain, [Q], rank=6)
    retell(path, r=4, rank_pattern={r"layers\.3\.self_attn\.q_proj": 6}, use_rslora=True)
    part = load_adapter(path, plain).parts[Q]
    assert part.a.shape[0] == 6 and part.scale == pytest.approx(12 / math.sqrt(6))
    path = write_mlx(tmp_path / "mlx", plain, [Q], rank=6)
    retell(path, optiq={"rank_scaling": "by_bits"}, lora_parameters={"rank": 4, "scale": 1.5})
    assert load_adapter(path, plain).parts[Q].a.shape[0] == 6


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model.", "language_model.model."])
def test_what_stands_before_the_layers_does_not_matter(plain: Any, tmp_path: Path, prefix: str) -> None:
    path = write_peft(tmp_path, plain, [Q])
    old = "base_model.model.model."
    rewrite(path, lambda t: [t.__setitem__(f"base_model.model.{prefix}{name[len(old) :]}", t.pop(name)) for name in list(t)])
    assert list(load_adapter(path, plain).parts) == [Q]


def test_a_quantized_layer_and_half_precision(model: Any, tmp_path: Path) -> None:
    path = write_peft(tmp_path, model, [Q])
    rewrite(path, lambda t: t.update({name: value.astype(mx.bfloat16) for name, value in t.items()}))
    assert load_adapter(path, model).parts[Q].a.shape == (4, 256)


A = f"base_model.model.{Q.removeprefix('language_model.')}.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda p: shutil.rmtree(p), InputError, "holds no adapter_config.json; give a directory"),
        (lambda p: (p / "adapter_model.safetensors").unlink(), InputError, "the adapter's weights are missing"),
        (lambda p: (p / "adapter_config.json").write_text("{"), FormatError, "is not valid JSON"),
        (lambda p: (p / "adapter_model.safetensors").write_bytes(b"1234"), FormatError, "cannot be read"),
        (lambda p: retell(p, peft_type="IA3"), FormatError, "peft_type is 'IA3', expected 'LORA'"),
        (lambda p: retell(p, bias="all"), FormatError, "bias is 'all', which is not supported"),
        (lambda p: retell(p, modules_to_save=["lm_head"]), FormatError, r"modules_to_save is \['lm_head'\], which is not"),
        (lambda p: retell(p, r="many"), FormatError, "r is 'many', expected a whole number of at least 1"),
        (lambda p: retell(p, rank_pattern=5), FormatError, "rank_pattern is 5, expected an object"),
        (lambda p: retell(p, lora_alpha=None), FormatError, "lora_alpha is None, expected a number"),
        (lambda p: retell(p, r=8), InputError, r"q_proj\.lora_A\.weight has shape \(4, 256\), expected \(8, 256\)"),
        (lambda p: retell(p, use_dora=True), FormatError, r"q_proj\.lora_magnitude_vector is missing"),
        (lambda p: rewrite(p, lambda t: t.pop(A)), FormatError, r"q_proj\.lora_A\.weight is missing"),
        (lambda p: rewrite(p, lambda t: t.clear()), FormatError, "holds no tensors"),
        (
            lambda p: rewrite(p, lambda t: t.update({A: t[A][:, :-1]})),
            InputError,
            r"safetensors: .*q_proj\.lora_A\.weight has shape \(4, 255\), expected \(4, 256\)",
        ),
        (lambda p: rewrite(p, lambda t: t.update({A: t[A] * math.nan})), FormatError, "holds NaN or infinity"),
        (lambda p: rewrite(p, lambda t: t.update({A: t[A].astype(mx.int32)})), FormatError, "of type mlx.core.int32 is no part"),
        (
            lambda p: rewrite(p, lambda t: t.update({"model.embed_tokens.lora_embedding_A": t[A]})),
            FormatError,
            "embed_tokens.lora_embedding_A of type mlx.core.float32 is no part of a linear layer's adapter",
        ),
        (
            lambda p: rewrite(p, lambda t: t.update({A.replace("layers.3", "layers.30"): t[A]})),
            InputError,
            r"layers\.30\.self_attn\.q_proj is no layer of this model; the adapter is for another one",
        ),
        (
            lambda p: rewrite(p, lambda t: t.update({A.replace("q_proj", "q_norm"): t[A]})),
            InputError,
            r"layers\.3\.self_attn\.q_norm is a layer of kind RMSNorm, expected linear layers; train the adapter without it",
        ),
        (
            lambda p: rewrite(p, lambda t: t.update({A.replace("lora_A.weight", "lora_magnitude_vector"): mx.ones(512)})),
            FormatError,
            "lora_magnitude_vector is there, but the config says no DoRA",
        ),
    ],
)
def test_what_does_not_fit_is_said(
    plain: Any, tmp_path: Path, change: Callable[[Path], Any], kind: type[OptiqError], told: str
) -> None:
    path = write_peft(tmp_path / "adapter", plain, [Q])
    change(path)
    with pytest.raises(kind, match=told) as raised:
        load_adapter(path, plain)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full', expected 'lora' or 'dora'"),
        ({"lora_parameters": None}, "no lora_parameters, expected rank and scale"),
        ({"lora_parameters": {"rank": 4, "alpha": 8}}, "scale is None, expected a number"),
        ({"lora_parameters": {"rank": 8, "scale": 1.0}}, r"lora_a has shape \(256, 4\), expected \(256, 8\)"),
        ({"fine_tune_type": "dora"}, r"q_proj\.m is missing"),
    ],
)
def test_what_does_not_fit_of_mlx_lm(plain: Any, tmp_path: Path, config: dict[str, Any], told: str) -> None:
    path = write_mlx(tmp_path, plain, [Q])
    retell(path, **config)
    with pytest.raises(OptiqError, match=told):
        load_adapter(path, plain)
