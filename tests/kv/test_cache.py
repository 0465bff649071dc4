"""One layer's cache: bytes that are really held, precision, statistics, masks, widths, files, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import gc
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from optiq.errors import FormatError, InputError, ModelError
from optiq.kernels import attention, native, packed
from optiq.kv.cache import PackedCache
from optiq.kv.recipe import FULL, SCHEMES, WIDTHS, Recipe, preset
from optiq.kv.rows import Statistics
from optiq.kv.saving import load_caches, save_caches
from optiq.kv.turboquant import TurboQuantKVCache
from token_rows import GROUPS, HEADS, KINDS, NEAR, WIDTH, Tokens, dense, errors

EVERY = [preset(scheme, bits) for scheme in SCHEMES for bits in WIDTHS[scheme]]


def filled(recipe: Recipe, *lengths: int, dtype: mx.Dtype = mx.float32, **more: object) -> PackedCache:
    cache, tokens = PackedCache(recipe, **more), Tokens(dtype=dtype)  # type: ignore[arg-type]
    for length in lengths:
        _, k, v = tokens.draw(1, length)
        cache.update_and_fetch(k, v)
    return cache


@pytest.mark.parametrize("recipe", EVERY, ids=lambda r: f"{r.scheme} {r.k_bits}")
def test_the_memory_that_is_held_is_what_nbytes_says(recipe: Recipe) -> None:
    """Nothing of full precision stays behind: the process's memory grows by nbytes."""
    mx.eval(filled(recipe, 8).state)  # constants that all caches share
    gc.collect()
    mx.clear_cache()
    before, shape = mx.get_active_memory(), (1, 4, 512, 128)
    cache, full = PackedCache(recipe), 0
    for _ in range(4):
        k, v = mx.random.normal(shape).astype(mx.bfloat16), mx.random.normal(shape).astype(mx.bfloat16)
        cache.update_and_fetch(k, v)
        mx.eval(cache.state)
        full += k.nbytes + v.nbytes
    k, v = k[:, :, :1], v[:, :, :1]
    cache.update_and_fetch(k, v)
    mx.eval(cache.state)
    del k, v
    gc.collect()
    held = mx.get_active_memory() - before
    assert abs(held - cache.nbytes) <= 64 * 1024, (held, cache.nbytes)  # pages, and buffers of a few bytes
    tokens, room = 4 * 512 + 1, 256
    per_vector = 128 * (recipe.k_bits / 8) + (2 if recipe.scheme != "affine" else 4 * 128 / recipe.group_size)
    own = (recipe.sinks + recipe.tail + 32) * 256
    assert cache.nbytes <= 8 * ((tokens + room) * per_vector + own)
    assert cache.nbytes < full * (recipe.k_bits + 2.5) / 16


def test_bytes_of_a_vector() -> None:
    assert (packed.packed_bytes(128, 3), packed.packed_bytes(128, 4), packed.packed_bytes(256, 3)) == (50, 66, 98)
    cache = PackedCache(preset("turbo", 3))
    x = mx.random.normal((1, 1, 256, 128))
    cache.update_and_fetch(x, x)
    assert cache.nbytes == 2 * 256 * 50


@pytest.mark.parametrize("scheme", SCHEMES)
def test_more_bits_are_closer(scheme: str) -> None:
    tokens = Tokens(1)
    q, k, v = tokens.draw(16, 200)
    expected = np.array(attention.reference(q[:, :, -1:], k, v, scale=0.2))
    found = []
    for bits in WIDTHS[scheme]:
        cache = PackedCache(preset(scheme, bits), still=0)
        cache.update_and_fetch(k[:, :, :-1], v[:, :, :-1])
        cache.update_and_fetch(k[:, :, -1:], v[:, :, -1:])
        found.append(float(np.abs(np.array(cache.attend(q[:, :, -1:], 0.2)) - expected).mean()))
    assert all(a > 1.15 * b for a, b in zip(found, found[1:], strict=False)), found


def test_sinks_and_tail_are_as_they_came() -> None:
    recipe = dataclasses.replace(preset("turbo", 1), sinks=3, tail=8)
    cache, tokens, given = PackedCache(recipe), Tokens(), []
    for length in [1, 60, 1, 1, 40, 1]:
        _, k, v = tokens.draw(1, length)
        cache.update_and_fetch(k, v)
        given.append(v)
    difference = errors(cache.keys_and_values()[1], mx.concatenate(given, 2))[0, 0]
    assert (difference[:3] == 0).all() and (difference[-8:] == 0).all() and (difference[3:60] > 0.1).all()
    assert cache.trim(20) == 20 and cache.offset == 84  # into the packed part
    left = errors(cache.keys_and_values()[1], mx.concatenate(given, 2)[:, :, :84])[0, 0]
    np.testing.assert_array_equal(left, difference[:84])


def test_statistics_are_exact_for_what_is_full_and_help_what_is_packed() -> None:
    """A mean, and scales that differ between channels: scores do not move, and packed keys get better."""
    generator = np.random.default_rng(0)
    scale = np.exp(generator.standard_normal((GROUPS, WIDTH)))
    mean = 3 * generator.standard_normal((GROUPS, WIDTH))
    tokens = Tokens(2)
    q, k, v = tokens.draw(1, 120)
    k = mx.array(scale, mx.float32)[:, None] * k + mx.array(mean, mx.float32)[:, None]
    q = q / mx.array(np.repeat(scale, HEADS // GROUPS, 0), mx.float32)[:, None]
    v = v + 5
    centre = mx.array(np.array(k).mean(2)[0])
    known = Statistics(centre, mx.array(scale, mx.float32), mx.full((GROUPS, WIDTH), 5.0))
    expected = np.array(attention.reference(q[:, :, -1:], k, v, scale=0.2))
    wrong = {}
    for name, recipe, with_known in [
        ("full", dataclasses.replace(preset("best", 3), tail=500), True),
        ("without", dataclasses.replace(preset("best", 3), tail=0), False),
        ("with", dataclasses.replace(preset("best", 3), tail=0), True),
    ]:
        cache = PackedCache(recipe, known if with_known else Statistics())
        cache.update_and_fetch(k[:, :, :-1], v[:, :, :-1])
        cache.update_and_fetch(k[:, :, -1:], v[:, :, -1:])
        wrong[name] = float(np.abs(np.array(cache.attend(q[:, :, -1:], 0.2)) - expected).max())
    assert wrong["full"] < 1e-4 and wrong["with"] < 0.6 * wrong["without"], wrong


def test_statistics_of_another_model() -> None:
    known = Statistics(value_mean=mx.ones((1, WIDTH)))
    with pytest.raises(InputError, match=r"another model: value_mean has shape \[1, 32\], expected \[2, 32\] \(key/value heads"):
        filled(preset("best", 4), 3, known=known)


def test_a_batch_knows_its_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention over packed tokens needs no mask then; another mask with the same content is read."""
    cache = PackedCache.merge([filled(preset("turbo", 3), 9), filled(preset("turbo", 3), 30)])
    asked = []
    monkeypatch.setattr(packed, "attend", lambda *_, **more: asked.append((more["mask"] is None, more["starts"])))
    for foreign in (False, True):
        q, k, v = Tokens().draw(2, 1)
        mask = cache.make_mask(1)
        cache.update_and_fetch(k, v)
        cache.attend(q, 0.2, mx.array(mask) if foreign else mask)
    (plain, starts), (read, none) = asked
    assert plain and np.array(starts).tolist() == [21, 0] and not read and none is None


def test_keys_lose_their_mean_where_they_do_not_turn() -> None:
    cache = filled(dataclasses.replace(preset("best", 4), tail=4), 64, 1, still=8)
    assert cache._mean is not None
    mean = np.array(cache._mean)[0, :, 0]
    assert not mean[:, :8].any() and (np.abs(mean[:, 8:]) > 0.1).mean() > 0.9
    short = filled(dataclasses.replace(preset("best", 4), tail=0, sinks=0), 5, 5, still=8)
    assert short._mean is None  # a mean over five keys is noise, and some are packed already
    assert filled(preset("best", 4), 200, 1)._mean is None  # where nobody knows which channels turn
    assert filled(preset("turbo", 4), 200, 1, still=8)._mean is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_native", [True, False])
def test_masks_and_heads_with_a_sink(kind: str, with_native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_native:
        monkeypatch.setattr(native, "module", lambda: None)
    cache, tokens = PackedCache(KINDS[kind], still=8), Tokens()
    for length in [50, 1, 7]:
        q, k, v = tokens.draw(1, length)
        cache.update_and_fetch(k, v)
    holes = mx.random.uniform(shape=(1, HEADS, 7, 58)) < 0.5
    holes[..., 0] = True
    for mask in (None, "causal", holes, holes[:, :1], holes[0, 0], mx.where(holes, 0.0, -5.0)):
        np.testing.assert_allclose(np.array(cache.attend(q, 0.2, mask)), np.array(dense(cache, q, mask)), atol=NEAR)
    k, v = cache.keys_and_values()
    sinks = mx.array([0.0, 1.0, 2.0, 3.0])
    expected = attention.reference(q, k, v, scale=0.2, mask="causal", sinks=sinks)
    np.testing.assert_allclose(np.array(cache.attend(q, 0.2, "causal", sinks)), np.array(expected), atol=NEAR)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_padded_before_their_prompt(kind: str) -> None:
    """Left padding as mlx-lm's batch caches have it: what is in its columns does not matter."""
    q, k, v = Tokens().draw(2, 40)
    found = []
    for garbage in (0.0, 7.0):
        cache = PackedCache.merge([PackedCache(KINDS[kind], still=8) for _ in range(2)])
        cache.prepare(left_padding=[33, 0])
        k[0, :, :33], v[0, :, :33] = garbage, garbage
        outputs = []
        for part in (slice(0, 10), slice(10, 39), slice(39, 40)):
            mask = cache.make_mask(part.stop - part.start)
            cache.update_and_fetch(k[:, :, part], v[:, :, part])
            outputs.append(np.array(cache.attend(q[:, :, part], 0.2, mask)))
        assert np.array(cache.offset).tolist() == [7, 40]
        found.append((outputs[1][0, :, 23:], outputs[2][0], outputs[2][1]))
        assert all(np.isfinite(output).all() for output in outputs)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=NEAR)
    with pytest.raises(ValueError, match="left padding can only be added to an empty cache"):
        cache.prepare(left_padding=[1, 1])


@pytest.mark.parametrize("width", [40, 80, 96, 256])
@pytest.mark.parametrize("recipe", EVERY, ids=lambda r: f"{r.scheme} {r.k_bits}")
def test_other_widths_and_types(recipe: Recipe, width: int) -> None:
    cache = PackedCache(recipe, still=0)
    mx.random.seed(width)
    for length in (130, 1):
        q, k, v = (mx.random.normal((1, heads, length, width)).astype(mx.bfloat16) for heads in (4, 2, 2))
        found = cache.update_and_fetch(k, v)
        assert cache.attend(q, 0.1, cache.make_mask(length)).dtype == mx.bfloat16
    assert [x.shape for x in found] == [(1, 2, 131, width)] * 2 and {x.dtype for x in found} == {mx.bfloat16}
    mask = mx.arange(131)[None] <= 130
    expected = np.array(dense(cache, q, mask, 0.1).astype(mx.float32))
    np.testing.assert_allclose(np.array(cache.attend(q, 0.1).astype(mx.float32)), expected, atol=0.02)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_of_another_width_than_keys(scheme: str) -> None:
    cache = PackedCache(preset(scheme, 4))
    for length in (130, 1):
        q, k, v = mx.random.normal((1, 4, length, 64)), mx.random.normal((1, 2, length, 64)), mx.random.normal((1, 2, length, 32))
        cache.update_and_fetch(k, v)
    np.testing.assert_allclose(np.array(cache.attend(q, 0.1)), np.array(dense(cache, q, None, 0.1)), atol=NEAR)


def test_heads_that_cannot_be_packed() -> None:
    x = mx.zeros((1, 1, 4, 20))
    with pytest.raises(ModelError, match="heads of width 20 cannot be rotated and packed, expected a multiple of 8"):
        PackedCache(preset("best", 4)).update_and_fetch(x, x)
    PackedCache(preset("affine", 4)).update_and_fetch(x, x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_goes_its_own_way(kind: str) -> None:
    cache, tokens = filled(KINDS[kind], 70, 1, still=8), Tokens(5)
    other, before = copy.deepcopy(cache), np.array(cache.keys_and_values()[1])
    for one in (cache, other):
        one.trim(30)
        _, k, v = tokens.draw(1, 50)
        one.update_and_fetch(k, v)
    first, second = (np.array(one.keys_and_values()[1]) for one in (cache, other))
    np.testing.assert_array_equal(first[:, :, :40], before[:, :, :40])
    np.testing.assert_array_equal(second[:, :, :40], before[:, :, :40])
    assert np.abs(first[:, :, 41:] - second[:, :, 41:]).max() > 0.1


def test_files(tmp_path: Path) -> None:
    """Ours beside mlx-lm's own; statistics come back too, and damaged files are one line."""
    from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, load_prompt_cache

    plain, state = KVCache(), ArraysCache(2)
    plain.update_and_fetch(mx.ones((1, 2, 3, 8)), mx.ones((1, 2, 3, 8)))
    state[0], state[1] = mx.zeros((1, 4)), mx.ones((1, 3))
    known = Statistics(mx.ones((GROUPS, WIDTH)), None, mx.full((GROUPS, WIDTH), 2.0))
    caches = [plain, filled(preset("best", 5), 90, 1, known=known), state, CacheList(filled(preset("turbo", 3), 9), KVCache())]
    caches += [PackedCache(preset("affine", 4)), TurboQuantKVCache(bits=2)]
    path = tmp_path / "caches.safetensors"
    save_caches(path, caches, {"model": "tiny"})
    found, texts = load_caches(path)
    assert texts == {"model": "tiny"} and [type(c) for c in found] == [type(c) for c in caches]
    assert found[1].recipe == caches[1].recipe and found[1].nbytes == caches[1].nbytes and found[1].offset == 91
    np.testing.assert_array_equal(np.array(found[1].known.value_mean), np.array(known.value_mean))
    for a, b in zip(found[1].keys_and_values(), caches[1].keys_and_values(), strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))
    assert found[4].empty() and found[5].recipe.k_bits == 2 and found[3][0].offset == 9
    save_caches(path, [plain])
    assert load_prompt_cache(str(path))[0].offset == 3

    with pytest.raises(InputError, match="no saved caches at"):
        load_caches(tmp_path / "gone.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FormatError, match="holds no caches that can be read"):
        load_caches(path)
    with pytest.raises(FormatError, match="the state of a key/value cache cannot be read"):
        PackedCache.from_state(['{"recipe": {}}', None, None, None, None, [None] * 3])


def test_caches_of_different_kinds_are_no_batch() -> None:
    with pytest.raises(ValueError, match="caches of different kinds cannot be one batch"):
        PackedCache.merge([PackedCache(preset("turbo", 3)), PackedCache(preset("turbo", 4))])


def test_no_attribute_that_stock_attention_would_take_for_its_own() -> None:
    for recipe in (*EVERY, Recipe("turbo", FULL, 3)):
        assert not hasattr(filled(recipe, 3), "bits")


def test_an_empty_cache() -> None:
    cache = PackedCache(preset("best", 4))
    assert (cache.offset, cache.size(), cache.nbytes, cache.empty(), cache.trim(5), cache.make_mask(1)) == (
        0,
        0,
        0,
        True,
        0,
        None,
    )
    assert cache.make_mask(3) == "causal" and cache.is_trimmable()
