"""kv_config.json: both directions, the plain form, and one clear line for each thing that can be wrong with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import random_models
from optiq.errors import FormatError, InputError, ModelError
from optiq.kv import attach
from optiq.kv.cache import PackedCache
from optiq.kv.config import STATISTICS, read_config, write_config
from optiq.kv.options import CacheOptions
from optiq.kv.recipe import FULL, SCHEMES, WIDTHS, Recipe, preset
from optiq.kv.rows import Statistics
from optiq.models.load import load_modules


def write(path: Path, entries: Any) -> Path:
    file = path / "kv_config.json"
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return file


def test_presets_exist_at_every_width() -> None:
    for scheme in SCHEMES:
        for bits in WIDTHS[scheme]:
            recipe = preset(scheme, bits)
            assert (recipe.scheme, recipe.k_bits, recipe.v_bits, recipe.bits) == (scheme, bits, bits, bits)
            assert recipe.centred == (scheme == "best") == bool(recipe.sinks and recipe.tail)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "jpeg"}, "scheme is 'jpeg', expected one of affine, turbo, best"),
        ({"k_bits": 7}, "k_bits is 7, which scheme affine does not have; expected one of 2, 3, 4, 5, 6, 8"),
        ({"v_bits": True}, "v_bits is True, which scheme affine does not have; expected one of 2, 3, 4, 5, 6, 8"),
        ({"scheme": "turbo", "k_bits": 5}, "k_bits is 5, which scheme turbo does not have; expected one of 1, 2, 3, 4"),
        ({"k_bits": FULL, "v_bits": FULL}, "k_bits and v_bits are both 16"),
        ({"group_size": 48}, "group_size is 48, expected one of 32, 64, 128"),
        ({"sinks": -1}, "sinks is -1, expected a whole number of at least 0"),
        ({"tail": 1.5}, "tail is 1.5, expected a whole number of at least 0"),
        ({"codebook": "huffman"}, "codebook is 'huffman', expected one of lloyd, uniform"),
        ({"scaling": "max"}, "scaling is 'max', expected one of norm, fit, exact, search"),
    ],
)
def test_recipes_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Recipe(**{"scheme": "affine", "k_bits": 4, "v_bits": 4, **change})
    assert str(error.value).startswith(message)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    recipes = {
        3: preset("affine", 4),
        7: preset("affine", 8, group_size=32),
        9: preset("turbo", 3),
        11: preset("best", 5, 3),
        12: dataclasses.replace(preset("best", 4), tail=128, seed=1),
        13: preset("turbo", FULL, 2),
    }
    known = {11: Statistics(key_mean=mx.ones((2, 8)), key_scale=mx.full((2, 8), 2.0)), 9: Statistics()}
    write_config(tmp_path / "kv_config.json", recipes, known)
    entries = json.loads((tmp_path / "kv_config.json").read_text())
    assert entries[0] == {"layer_idx": 3, "bits": 4, "group_size": 64}  # the plain form, to the letter
    assert entries[3]["bits"] == 5 and entries[3]["statistics"] == STATISTICS and "statistics" not in entries[2]
    found = read_config(tmp_path)
    assert found.recipes == recipes and set(found.known) == {11}
    assert found.known[11].key_mean is not None and found.known[11].value_mean is None
    np.testing.assert_array_equal(np.array(found.known[11].key_scale), np.full((2, 8), 2.0))


def test_the_plain_form_is_affine_and_keys_that_nobody_knows_are_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path, [{"layer_idx": 1, "bits": 8}, {"layer_idx": 0, "bits": 3, "group_size": 32, "note": "x"}])
    assert read_config(file).recipes == {0: preset("affine", 3, group_size=32), 1: preset("affine", 8)}
    rich = write(tmp_path, [{"layer_idx": 0, "bits": 4, "scheme": "best", "v_bits": 3, "tail": 0}])
    assert read_config(rich).recipes[0] == dataclasses.replace(preset("best", 4, 3), tail=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"layer_idx": 3, "bi', "is not valid JSON (Unterminated string"),
        ("{}", "holds a JSON dict, expected a list of layers"),
        ([], "is an empty list, expected at least one layer"),
        ([4], "entry 0 is 4, expected an object"),
        ([{"bits": 4}], "entry 0: layer_idx is None, expected a whole number of at least 0"),
        ([{"layer_idx": -1, "bits": 4}], "entry 0: layer_idx is -1, expected a whole number of at least 0"),
        ([{"layer_idx": 3}], "entry 0 (layer_idx 3): there is no bits; expected the width of the codes"),
        ([{"layer_idx": 3, "bits": 7}], "entry 0 (layer_idx 3): bits is 7, which scheme affine does not have; expected one of 2"),
        ([{"layer_idx": 3, "bits": "4"}], "entry 0 (layer_idx 3): bits is '4', which scheme affine does not have"),
        ([{"layer_idx": 3, "bits": 4, "scheme": "zip"}], "entry 0 (layer_idx 3): scheme is 'zip', expected one of affine"),
        ([{"layer_idx": 3, "bits": 4, "scheme": []}], "entry 0 (layer_idx 3): scheme is [], expected one of affine"),
        ([{"layer_idx": 3, "bits": 4, "k_bits": 3, "v_bits": 2}], "bits is 4, expected 3, the larger of k_bits and v_bits"),
        ([{"layer_idx": 3, "bits": 4, "group_size": 5}], "entry 0 (layer_idx 3): group_size is 5, expected one of 32, 64, 128"),
        ([{"layer_idx": 3, "bits": 4}] * 2, "entry 1: layer_idx 3 is there twice; keep one of the two"),
        ([{"layer_idx": 3, "bits": 4, "statistics": "../x"}], "statistics is '../x', expected the name of a file beside it"),
        ([{"layer_idx": 3, "bits": 4, "statistics": "gone.safetensors"}], "gone.safetensors of the kv config cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, content: Any, message: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises(FormatError) as error:
        read_config(file)
    assert message in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no kv config at .*kv_config.json; `optiq kv-cache` makes one"):
        read_config(tmp_path)


def test_a_file_for_another_model(tmp_path: Path) -> None:
    model, _ = load_modules(random_models.write(tmp_path / "qwen", "qwen3_5-tied"))
    cases = {
        9: "layer_idx 9 is not in this model, which has 4 layers; the file was made for another model",
        1: "layer 1 of this model has no key/value cache of its own (layers 3 have); the file was made for another model",
    }
    for index, message in cases.items():
        maker = CacheOptions(config=str(write(tmp_path, [{"layer_idx": index, "bits": 4}]))).read()
        with pytest.raises(InputError) as error:
            maker.check(model)
        assert str(error.value) == f"{tmp_path / 'kv_config.json'}: {message}"


def test_models_whose_caches_cannot_be_packed(tmp_path: Path) -> None:
    model, _ = load_modules(random_models.write(tmp_path / "mla", "deepseek_v3"))
    with pytest.raises(ModelError, match="this model caches MLA latents, which are compressed already"):
        CacheOptions(bits=4).read().check(model)
    model, _ = load_modules(random_models.write(tmp_path / "qwen", "qwen3_5-tied"))
    model.language_model.model.layers = model.language_model.model.layers[:3]  # recurrent ones
    with pytest.raises(ModelError, match="this model has no key/value cache"):
        CacheOptions(bits=4).read().check(model)


def test_each_layer_gets_its_own(tmp_path: Path) -> None:
    model, _ = load_modules(random_models.write(tmp_path / "gemma", "gemma3"))
    recipes = {0: preset("turbo", 3), 1: preset("affine", 4)}
    write_config(tmp_path / "kv_config.json", recipes)
    maker = CacheOptions(config=str(tmp_path)).read()
    maker.check(model)
    first, second, third = maker(model)
    assert isinstance(first, PackedCache) and first.recipe == recipes[0] and first.window == 16
    assert isinstance(second, PackedCache) and second.recipe == recipes[1] and second.window == 0
    assert not isinstance(third, PackedCache)
    assert [layer.rotary for layer in attach.layers(model)] == [32, 32, 32]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"bits": 7}, "--kv-bits is 7, which scheme best does not have; expected one of 2, 3, 4, 5, 6, 8"),
        ({"bits": 8, "scheme": "turbo"}, "--kv-bits is 8, which scheme turbo does not have; expected one of 1, 2, 3, 4"),
        ({"scheme": "turbo"}, "--kv-scheme turbo comes without a width; add --kv-bits with one of 1, 2, 3, 4"),
        ({"scheme": "zip", "bits": 4}, "--kv-scheme is 'zip', expected one of affine, turbo, best"),
        ({"config": "x", "bits": 4}, "--kv-config names the widths and schemes of layers, and --kv-bits too; leave one"),
        ({"config": "x", "scheme": "best"}, "--kv-config names the widths and schemes of layers, and --kv-scheme too; leave"),
    ],
)
def test_contradictions(words: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        CacheOptions(**words)
    assert str(error.value).startswith(message)
