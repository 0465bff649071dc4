"""The private instances of mlx-lm's files: their numbers are stock, and the stock package stays as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import quick
import random_models
from optiq.errors import ModelError
from optiq.models import arch
from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream

UNTOUCHED = """
import mlx_lm.models.base as base, mlx_lm.models.gated_delta as delta, mlx_lm.models.cache as cache
import mlx_lm.models.qwen3_5 as qwen, mlx_lm.models.qwen3_next as qwen3_next
stock = (base, delta, cache, qwen, qwen3_next)
before = {m.__name__: dict(vars(m)) for m in stock}
update, attend = delta.gated_delta_update, base.scaled_dot_product_attention
import optiq
from optiq.models import arch
Model, Args = arch.classes({"model_type": "qwen3_5"})
assert Model is not qwen.Model
assert Model.__module__ == "optiq_arch.qwen3_5"
assert delta.gated_delta_update is update and qwen.gated_delta_update is update
assert base.scaled_dot_product_attention is attend and qwen3_next.scaled_dot_product_attention is attend
assert update.__module__ == "mlx_lm.models.gated_delta" and attend.__module__ == "mlx_lm.models.base"
for module in stock:
    changed = [n for n, v in vars(module).items() if not n.startswith("__") and before[module.__name__].get(n) is not v]
    assert not changed, changed
import sys
own = {name: sys.modules["optiq_arch." + name] for name in ("qwen3_5", "qwen3_next", "base", "cache", "gated_delta")}
assert own["qwen3_5"].gated_delta_update is own["gated_delta"].gated_delta_update is not update
assert own["qwen3_next"].scaled_dot_product_attention is own["base"].scaled_dot_product_attention is not attend
assert own["cache"] is cache
for name, one in (("base", "scaled_dot_product_attention"), ("gated_delta", "gated_delta_update")):
    differs = [n for n, v in vars(sys.modules["mlx_lm.models." + name]).items() if vars(own[name]).get(n) is not v]
    assert [n for n in differs if not n.startswith("__")] == [one], differs
print("untouched")
"""


def test_the_stock_modules_stay_untouched() -> None:
    done = subprocess.run([sys.executable, "-c", UNTOUCHED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "untouched", done.stderr


@pytest.mark.parametrize("name", ["qwen3_5-tied", "qwen3_5-moe"])
@pytest.mark.parametrize("length", [1, 5, 70])
def test_stock_qwen3_5_logits_are_ours(tmp_path: Path, name: str, length: int) -> None:
    """Also where a text is longer than one chunk of the gated delta rule, and with a cache in two parts."""
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    path = random_models.write(tmp_path / "model", name)
    ids = mx.array(np.random.default_rng(0).integers(0, 128, (2, length)).astype(np.int32))
    stock, _ = load_model(path)
    stock.set_dtype(mx.float32)
    expected = stock(ids)
    quick.assert_close(Stream(Checkpoint.open(path), whole=True).tail(mx.zeros((1, 1, 1)), ids), expected, 2e-3)
    ours, _ = load_model(path, get_model_classes=lambda config: arch.classes(config))
    ours.set_dtype(mx.float32)
    quick.assert_close(ours(ids), expected, 1e-4)
    cache = make_prompt_cache(ours)
    cut = length // 2
    parts = [ours(part, cache=cache) for part in (ids[:, :cut], ids[:, cut:]) if part.size]
    quick.assert_close(mx.concatenate(parts, axis=1), expected, 1e-4)


def test_attention_is_stock_attention_with_any_cache() -> None:
    """Plain, with each kind of mask, and over a quantized cache, whose keys and values are codes."""
    from mlx_lm.models import base as stock
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    arch.classes({"model_type": "qwen3_5"})
    own = sys.modules["optiq_arch.base"].scaled_dot_product_attention
    rng = np.random.default_rng(2)
    q, k, v = (mx.array(rng.standard_normal((2, heads, 9, 64)).astype(np.float32)) for heads in (4, 2, 2))
    for mask in (None, "causal", stock.create_causal_mask(9, window_size=3), mx.array(rng.standard_normal((9, 9)), mx.float32)):
        for cache in (KVCache(), QuantizedKVCache(group_size=32, bits=8)):
            keys, values = cache.update_and_fetch(k, v)
            arguments = {"cache": cache, "scale": 0.125, "mask": mask}
            # The stock quantized form scales its queries in place.
            expected = stock.scaled_dot_product_attention(q + 0, keys, values, **arguments)
            quick.assert_close(own(q + 0, keys, values, **arguments), expected, 1e-5)


def test_padded_tokens_leave_the_state_alone() -> None:
    """The masked form, as batched generation uses it: the same as stock mlx-lm's."""
    from mlx_lm.models.gated_delta import gated_delta_update

    arch.classes({"model_type": "qwen3_5"})
    own = sys.modules["optiq_arch.gated_delta"].gated_delta_update
    assert own is not gated_delta_update
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape).astype(np.float32))

    q, k = (x / mx.linalg.norm(x, axis=-1, keepdims=True) for x in (normal(2, 9, 1, 8), normal(2, 9, 1, 8)))
    arguments = (q, k, normal(2, 9, 2, 8), normal(2, 9, 2), normal(2, 9, 2), normal(2), normal(2), normal(2, 2, 8, 8))
    mask = mx.array([[False] * 4 + [True] * 5, [True] * 9])
    for found, expected in zip(own(*arguments, mask), gated_delta_update(*arguments, mask), strict=True):
        if found.ndim == 4 and found.shape[1] == 9:
            found, expected = (mx.where(mask[..., None, None], x, 0.0) for x in (found, expected))
        quick.assert_close(found, expected, 1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "names no model_type"),
        ({"model_type": "hal9000"}, r"architecture 'hal9000' is unknown to mlx-lm \d"),
        ({"model_type": "../cache"}, "is not the name of an architecture"),
        ({"model_type": "cache"}, "no architecture"),
    ],
)
def test_configs_without_a_known_architecture_are_refused(config: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        arch.classes(config)
