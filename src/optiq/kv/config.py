"""kv_config.json: which layers' caches are packed and how; docs/formats.md describes it.

A JSON list of `{"layer_idx", "bits", "group_size"}`, as the reference product writes it, with more keys where a recipe is not
plain affine. Statistics of the vectors lie in a safetensors file beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from optiq.errors import FormatError, InputError
from optiq.files import write_json
from optiq.kv import attach
from optiq.kv.recipe import Recipe, check_bits, check_scheme, preset
from optiq.kv.rows import Statistics
from optiq.models.save import write_safetensors

NAME = "kv_config.json"
STATISTICS = "kv_statistics.safetensors"
_RICH = ("scheme", "k_bits", "v_bits", "sinks", "tail", "seed", "codebook", "scaling")
_PARTS = ("key_mean", "key_scale", "value_mean")


@dataclass(frozen=True)
class Config:
    """What a file says.

    Args:
        path: the file, for messages.
        recipes: by layer index.
        known: statistics by layer index.
    """

    path: Path
    recipes: Mapping[int, Recipe]
    known: Mapping[int, Statistics]

    def check(self, model: Any) -> None:
        """Whether this model has the layers that are named.

        Raises:
            InputError: it has not, or a layer keeps no key/value cache of its own.
            ModelError: it has no key/value caches at all, or MLA latents.
        """
        have = [layer.index for layer in attach.layers(model)]
        count = attach.depth(model)
        for index in self.recipes:
            if index >= count:
                raise InputError(
                    f"{self.path}: layer_idx {index} is not in this model, which has {count} layers; "
                    "the file was made for another model"
                )
            if index not in have:
                told = ", ".join(map(str, have))
                raise InputError(
                    f"{self.path}: layer {index} of this model has no key/value cache of its own (layers {told} have); "
                    "the file was made for another model"
                )


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a kv_config.json, or the one in a directory.

    Raises:
        InputError: no such file.
        FormatError: it cannot be read, or an entry is not one.
    """
    file = Path(path) / NAME if Path(path).is_dir() else Path(path)
    recipes: dict[int, Recipe] = {}
    names: dict[int, str] = {}
    for number, entry in enumerate(_entries(file)):
        where = f"{file}: entry {number}"
        if not isinstance(entry, dict):
            raise FormatError(f'{where} is {entry!r}, expected an object {{"layer_idx", "bits", "group_size"}}')
        index = entry.get("layer_idx")
        if type(index) is not int or index < 0:
            raise FormatError(f"{where}: layer_idx is {index!r}, expected a whole number of at least 0")
        if index in recipes:
            raise FormatError(f"{where}: layer_idx {index} is there twice; keep one of the two")
        try:
            recipes[index] = _recipe(entry)
        except (InputError, TypeError) as error:
            raise FormatError(f"{where} (layer_idx {index}): {error}") from None
        if "statistics" in entry:
            names[index] = _plain_name(entry["statistics"], where)
    return Config(file, recipes, _read_statistics(file.parent, names))


def write_config(
    path: str | os.PathLike[str], recipes: Mapping[int, Recipe], known: Mapping[int, Statistics] | None = None
) -> None:
    """Write a kv_config.json, and first, where there are statistics, their file beside it.

    Raises:
        ResourceError: the disk is full.
        InputError: the place cannot be written.
    """
    path = Path(path)
    arrays = {
        f"layers.{index}.{part}": value.astype(mx.float32)
        for index, found in sorted((known or {}).items())
        for part in _PARTS
        if index in recipes and (value := getattr(found, part)) is not None
    }
    told = {int(name.split(".")[1]) for name in arrays}
    if arrays:
        write_safetensors(path.parent / STATISTICS, arrays, {"format": "optiq-kv-statistics", "schema": "1"})
    entries = []
    for index, recipe in sorted(recipes.items()):
        entry: dict[str, Any] = {"layer_idx": index, "bits": recipe.bits, "group_size": recipe.group_size}
        plain = recipe.scheme == "affine" and recipe == preset("affine", recipe.bits, group_size=recipe.group_size)
        if not plain:
            entry |= {name: getattr(recipe, name) for name in _RICH}
        entries.append(entry | ({"statistics": STATISTICS} if index in told else {}))
    write_json(path, entries)


def _recipe(entry: Mapping[str, Any]) -> Recipe:
    """One entry's recipe; what it leaves out is as the scheme's preset has it."""
    scheme = entry.get("scheme", "affine")
    if "bits" not in entry and "k_bits" not in entry:
        raise InputError("there is no bits; expected the width of the codes")
    check_scheme(scheme)
    if "bits" in entry:
        check_bits(scheme, entry["bits"], spare=True)
    k_bits = entry.get("k_bits", entry.get("bits"))
    v_bits = entry.get("v_bits", entry.get("bits", k_bits))
    usual = preset(scheme, k_bits, v_bits, entry.get("group_size", 64))
    found = Recipe(**{name: entry.get(name, getattr(usual, name)) for name in usual.__dataclass_fields__})
    if entry.get("bits", found.bits) != found.bits:
        raise InputError(f"bits is {entry['bits']!r}, expected {found.bits}, the larger of k_bits and v_bits")
    return found


def _entries(file: Path) -> list[Any]:
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"no kv config at {file}; `optiq kv-cache` makes one") from None
    except OSError as error:
        raise FormatError(f"cannot read the kv config {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the kv config {file} is not valid JSON ({error}); make it again") from None
    if not isinstance(found, list):
        raise FormatError(f"the kv config {file} holds a JSON {type(found).__name__}, expected a list of layers")
    if not found:
        raise FormatError(f"the kv config {file} is an empty list, expected at least one layer; leave out --kv-config instead")
    return found


def _plain_name(name: object, where: str) -> str:
    if not isinstance(name, str) or Path(name).name != name:
        raise FormatError(f"{where}: statistics is {name!r}, expected the name of a file beside it")
    return name


def _read_statistics(folder: Path, names: Mapping[int, str]) -> dict[int, Statistics]:
    """The statistics of each layer that names a file.

    Raises:
        FormatError: a file is not there or damaged.
    """
    files: dict[str, dict[str, mx.array]] = {}
    for name in set(names.values()):
        try:
            found = mx.load(str(folder / name), format="safetensors")
        except RuntimeError as error:
            raise FormatError(
                f"the statistics {folder / name} of the kv config cannot be read ({error}); make it again"
            ) from None
        assert isinstance(found, dict)
        files[name] = found
    return {index: Statistics(*(files[name].get(f"layers.{index}.{part}") for part in _PARTS)) for index, name in names.items()}
