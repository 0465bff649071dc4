"""`turboquant_mlx` with stock mlx-lm, as its document shows it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.errors import InputError
from turboquant_mlx import TurboQuantKVCache, VOnlyTurboQuantCache, apply_patch, make_adaptive_cache, remove_patch

ROOT = Path(__file__).resolve().parents[2]
SMOKE_TEST = (
    "import mlx.core as mx; from pathlib import Path; from mlx_lm import load; from mlx_lm.models.cache import KVCache; "
    "from turboquant_mlx import TurboQuantKVCache, apply_patch; root=Path('.').resolve(); model, tokenizer = load(str(root)); "
    "apply_patch(); cache=[TurboQuantKVCache(bits=3) if isinstance(c, KVCache) else c for c in model.make_cache()]; "
    "logits=model(mx.array(tokenizer.encode('TurboQuant smoke test.'))[None], cache=cache); mx.eval(logits); "
    "token=mx.argmax(logits[:, -1, :], axis=-1); logits=model(token.reshape(1, 1), cache=cache); mx.eval(logits); "
    "print('TQ3 local bundle OK')"
)
MINIMAL_USAGE = """
from pathlib import Path

import mlx.core as mx
from mlx_lm import load
from mlx_lm.models.cache import KVCache
from turboquant_mlx import TurboQuantKVCache, apply_patch

repo_root = Path('.').resolve()

model, tokenizer = load(str(repo_root))
apply_patch()

cache = []
for c in model.make_cache():
    cache.append(TurboQuantKVCache(bits=3) if isinstance(c, KVCache) else c)

prompt = "Explain why KV-cache compression matters for long-context decoding."
input_ids = mx.array(tokenizer.encode(prompt))[None]
logits = model(input_ids, cache=cache)
mx.eval(logits)
"""


@pytest.fixture
def patched():  # type: ignore[no-untyped-def]
    apply_patch()
    yield
    remove_patch()


def _python(*words: str, folder: Path) -> str:
    place = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env={**os.environ, "PYTHONPATH": place}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_smoke_test_of_the_document(tiny_model: Path) -> None:
    assert _python("-c", SMOKE_TEST, folder=tiny_model) == "TQ3 local bundle OK\n"


def test_the_minimal_usage_of_the_document(tiny_model: Path) -> None:
    told = "print([*logits.shape], [c.offset for c in cache if isinstance(c, TurboQuantKVCache)])"
    shape, offsets = json.loads("[" + _python("-c", MINIMAL_USAGE + told, folder=tiny_model).replace("] [", "], [") + "]")
    assert shape[0] == 1 and shape[1] > 5 and offsets and set(offsets) == {shape[1]}


def test_the_example(tiny_model: Path) -> None:
    out = _python("examples/run_qwen35_tq3.py", "--max-tokens", "6", folder=ROOT)
    assert "--- KVCache" in out and "--- TurboQuantKVCache(bits=3)" in out and out.count("tokens/s; key/value caches") == 2


def test_the_patch_is_everywhere_and_goes_away_without_a_trace() -> None:
    from mlx_lm.models import base, cache, qwen3

    names = ("scaled_dot_product_attention",)
    before = {name: dict(vars(module)) for name, module in _loaded()}
    stock = base.scaled_dot_product_attention
    apply_patch()
    apply_patch()
    assert qwen3.scaled_dot_product_attention is base.scaled_dot_product_attention is not stock
    assert cache.TurboQuantKVCache is TurboQuantKVCache  # for load_prompt_cache
    sys.modules.pop("mlx_lm.models.olmo2", None)
    late = importlib.import_module("mlx_lm.models.olmo2")  # loaded while the patch is on
    assert late.scaled_dot_product_attention is not stock
    remove_patch()
    remove_patch()
    assert late.scaled_dot_product_attention is stock
    for name, module in _loaded():
        if name in before and name != "mlx_lm.models.olmo2":
            assert dict(vars(module)) == before[name], (name, names)


def _loaded():  # type: ignore[no-untyped-def]
    return [(name, module) for name, module in list(sys.modules.items()) if name.startswith("mlx_lm.models.")]


def test_other_caches_are_left_to_the_stock_code(patched: None, tmp_path: Path) -> None:
    from mlx_lm.models.cache import KVCache, QuantizedKVCache
    from mlx_lm.utils import load_model

    model, _ = load_model(random_models.write(tmp_path, "llama"))
    tokens = mx.array([list(range(3, 40))])
    logits = {kind: model(tokens, cache=[kind() for _ in model.layers]) for kind in (KVCache, lambda: QuantizedKVCache(32, 8))}
    first, second = (np.array(x.astype(mx.float32)) for x in logits.values())
    assert 0 < np.abs(first - second).max() < 0.2


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3_5-tied"])
def test_without_the_patch_the_same_comes_out_slowly(tmp_path: Path, kind: str) -> None:
    """Keys and values that the cache returns are right for whoever reads them."""
    from mlx_lm.models.cache import KVCache
    from mlx_lm.utils import load_model

    model, _ = load_model(random_models.write(tmp_path, kind))
    model.set_dtype(mx.float32)
    tokens, found = mx.array([list(range(3, 40))]), []
    for patch in (apply_patch, remove_patch):
        patch()
        caches = [TurboQuantKVCache(bits=4) if isinstance(c, KVCache) else c for c in _stock_caches(model)]
        model(tokens, cache=caches)
        found.append(np.array(model(mx.array([[7]]), cache=caches)))
    np.testing.assert_allclose(found[0], found[1], atol=3e-4)  # native attention takes queries as 16-bit fixed-point numbers


def _stock_caches(model):  # type: ignore[no-untyped-def]
    from mlx_lm.models.cache import make_prompt_cache

    return make_prompt_cache(model)


def test_files_of_mlx_lm(patched: None, tmp_path: Path) -> None:
    from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache, trim_prompt_cache

    caches = [TurboQuantKVCache(bits=3), VOnlyTurboQuantCache(bits=2)]
    for cache in caches:
        cache.update_and_fetch(mx.random.normal((1, 2, 30, 64)), mx.random.normal((1, 2, 30, 64)))
    save_prompt_cache(str(tmp_path / "c.safetensors"), caches)
    found = load_prompt_cache(str(tmp_path / "c.safetensors"))
    assert [type(c) for c in found] == [TurboQuantKVCache, VOnlyTurboQuantCache]
    for a, b in zip(found, caches, strict=True):
        assert (a.offset, a.nbytes, a.recipe) == (30, b.nbytes, b.recipe)
        np.testing.assert_array_equal(np.array(a.keys_and_values()[0]), np.array(b.keys_and_values()[0]))
    assert trim_prompt_cache(found, 12) == 12 and found[0].offset == 18


def test_batches_of_mlx_lm(patched: None, tiny_model: Path) -> None:
    """Its batch generator pads prompts behind, merges, extends, filters and extracts: every reply is that of the row alone."""
    from mlx_lm import load
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.models.cache import KVCache

    model, tokenizer = load(str(tiny_model))
    model.set_dtype(mx.float32)

    def caches():  # type: ignore[no-untyped-def]
        return [TurboQuantKVCache(bits=4) if isinstance(c, KVCache) else c for c in _stock_caches(model)]

    prompts = [tokenizer.encode(text) for text in ("The sea", "Once upon a time there was a small town by the river", "A list:")]
    generator = BatchGenerator(model, max_tokens=12, completion_batch_size=4, prefill_batch_size=2)
    ids = generator.insert(prompts, caches=[caches() for _ in prompts])
    found: dict[int, list[int]] = {uid: [] for uid in ids}
    while responses := generator.next_generated():
        for response in responses:
            found[response.uid].append(response.token)
    assert [len(tokens) for tokens in found.values()] == [12, 12, 12]
    for uid, prompt in zip(ids, prompts, strict=True):
        cache, alone, logits = caches(), [], None
        model(mx.array([prompt[:-1]]), cache=cache)
        token = prompt[-1]
        while len(alone) < len(found[uid]):
            logits = model(mx.array([[token]]), cache=cache)
            token = int(mx.argmax(logits[0, -1]))
            alone.append(token)
        assert found[uid][:4] == alone[:4]  # prompts in a batch are packed after they were read, not before: later ones may part


def test_adaptive_caches(tmp_path: Path) -> None:
    from mlx_lm.models.cache import KVCache
    from mlx_lm.utils import load_model

    kinds = [type(cache) for cache in make_adaptive_cache(12, bits=2, fp16_layers=2)]
    assert kinds == [KVCache] * 2 + [TurboQuantKVCache] * 8 + [KVCache] * 2
    assert {type(cache) for cache in make_adaptive_cache(6)} == {KVCache}
    model, _ = load_model(random_models.write(tmp_path, "qwen3_5-tied"))
    (*others, last) = make_adaptive_cache(4, fp16_layers=0, model=model)
    assert isinstance(last, TurboQuantKVCache) and not any(isinstance(c, TurboQuantKVCache) for c in others)


def test_arguments() -> None:
    cache = TurboQuantKVCache()
    assert (cache.recipe.k_bits, cache.recipe.v_bits, cache.recipe.seed) == (3, 3, 42)
    assert VOnlyTurboQuantCache(bits=2).recipe == TurboQuantKVCache(bits=2, fused=True, v_only=True).recipe
    with pytest.raises(InputError, match="k_bits is 5, which scheme turbo does not have"):
        TurboQuantKVCache(bits=5)
    with pytest.warns(UserWarning, match="sparse_v_threshold has no effect"):
        TurboQuantKVCache(sparse_v_threshold=1e-6)
