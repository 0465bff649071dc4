"""Whole layers of a decoding step: the bits of the single operations, and declined wherever something stands around them."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tuner.lora import LoRALinear

from optiq.kernels import fused, native
from optiq.models import layers
from optiq.models.caches import make_caches
from tiny_model import count_steps, tiny

pytestmark = pytest.mark.skipif(native.module() is None, reason="the native kernels were not built here")


def _model(bits: int = 4, dtype: mx.Dtype = mx.bfloat16) -> Any:
    return tiny(bits, dtype)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each layer call went through a native layer."""
    return count_steps(monkeypatch)


def _run(model: Any, ids: np.ndarray, steps_after: int = 3) -> list[np.ndarray]:
    """Logits of the prompt's last token, then of single tokens, then of a piece of three."""
    caches, found = make_caches(model), []
    pieces = [ids[:, :-1], *([ids[:, -1:]] * steps_after), ids[:, :3]]
    for piece in pieces:
        logits = model(mx.array(piece), cache=caches)
        found.append(np.array(logits[:, -1].astype(mx.float32)))
    return found


@pytest.mark.parametrize(("bits", "dtype"), [(4, mx.bfloat16), (8, mx.bfloat16), (3, mx.float16), (4, mx.float32)])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_bits_are_those_of_the_single_operations(
    bits: int, dtype: mx.Dtype, rows: int, monkeypatch: pytest.MonkeyPatch, counted: list[bool]
) -> None:
    model = _model(bits, dtype)
    ids = np.random.default_rng(0).integers(1, 4000, (rows, 30))
    whole = _run(model, ids)
    assert sum(counted) == 4 * len(model.layers)
    monkeypatch.setattr(layers.DecoderLayer, "_step", lambda *args: None)
    for ours, single in zip(whole, _run(model, ids), strict=True):
        np.testing.assert_array_equal(ours, single)


def test_a_weight_that_is_replaced_is_seen(counted: list[bool]) -> None:
    model, other = _model(), _model()
    ids = np.random.default_rng(1).integers(1, 4000, (1, 20))
    before = _run(model, ids)
    for name in ("in_proj_qkv", "out_proj"):
        projection = other.layers[0].linear_attn[name]
        projection["scales"] = projection["scales"] * 2
    other.layers[3].mlp.down_proj["biases"] = other.layers[3].mlp.down_proj["biases"] * 3
    wanted = _run(other, ids)
    for name in ("in_proj_qkv", "out_proj"):
        model.layers[0].linear_attn[name]["scales"] = other.layers[0].linear_attn[name]["scales"]
    model.layers[3].mlp.down_proj["biases"] = other.layers[3].mlp.down_proj["biases"]
    after = _run(model, ids)
    assert not np.array_equal(before[1], after[1])
    np.testing.assert_array_equal(after[1], wanted[1])


def test_an_adapter_is_not_passed_over(counted: list[bool]) -> None:
    model = _model()
    ids = np.random.default_rng(2).integers(1, 4000, (1, 20))
    plain = _run(model, ids)
    counted.clear()
    for layer, name in (
        (model.layers[0].linear_attn, "in_proj_z"),
        (model.layers[3].self_attn, "o_proj"),
        (model.layers[1].mlp, "up_proj"),
    ):
        adapter = LoRALinear.from_base(layer[name], r=2)
        adapter.lora_b = mx.random.normal(adapter.lora_b.shape) * 0.1
        setattr(layer, name, adapter)
    changed = _run(model, ids)
    assert not np.array_equal(plain[1], changed[1])
    assert sum(counted) == 4 * (len(model.layers) - 3)


def test_a_derivative_goes_through_the_single_operations(counted: list[bool]) -> None:
    model = _model(dtype=mx.float32)
    caches = make_caches(model)
    model(mx.array(np.random.default_rng(3).integers(1, 4000, (1, 8))), cache=caches)
    mx.eval([cache.state for cache in caches])
    counted.clear()

    def loss(x: mx.array) -> mx.array:
        return (model.layers[0](x, cache=copy.deepcopy(caches[0])) ** 2).sum()

    x = mx.array(np.random.default_rng(5).standard_normal((1, 1, model.language_model.args.hidden_size)), mx.float32)
    gradient, moved = mx.grad(loss)(x), mx.zeros_like(x)
    moved[..., 5] = 1e-2
    slope = (loss(x + moved) - loss(x - moved)).item() / 2e-2
    assert counted == [False, True, True]
    assert gradient[0, 0, 5].item() == pytest.approx(slope, rel=0.1)  # a step sees activations of 16 bits


def test_a_copy_builds_its_own_layers(counted: list[bool]) -> None:
    model = _model()
    ids = np.random.default_rng(4).integers(1, 4000, (1, 20))
    wanted = _run(model, ids)
    other = copy.deepcopy(model)
    assert other.layers[0].__dict__["_built_step"].layer is None
    np.testing.assert_array_equal(_run(other, ids)[1], wanted[1])
    assert fused.FEW_ROWS == 16
