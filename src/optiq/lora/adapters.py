"""Adapters on disk: PEFT's directories and mlx-lm's, read and compared with the model that they are for.

    PEFT     adapter_config.json, adapter_model.safetensors   <module>.lora_A.weight [R, I], .lora_B.weight [O, R],
                                                              .lora_magnitude_vector [O];  s = alpha / R, or alpha / sqrt(R)
    mlx-lm   adapter_config.json, adapters.safetensors        <module>.lora_a [I, R], .lora_b [R, O], .m [O];  s = scale
                                                              of a bank of experts: .lora_a [E, R, I], .lora_b [E, O, R]

Module names differ in what stands before `layers.<n>` (`base_model.model.`, `language_model.`); they are compared behind that.
Adapters are for linear layers and mlx-lm's banks of experts, plain or quantized. Whatever a directory asks for beyond that is
refused, never left out.
Data in: a directory and a loaded model. Data out: an `Adapter`.

Source: PEFT 0.17 `LoraConfig` and its rank and alpha patterns; mlx-lm 0.32 `tuner/utils.py`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from optiq.errors import FormatError, InputError
from optiq.files import read_json, sha256_file, sha256_json
from optiq.lora.layers import Part
from optiq.models.adapted import expert_layers, linear_layers, weight_shape

CONFIG, PEFT, MLX = "adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"
_PREFIXES = frozenset({"base_model", "model", "language_model"})
_PEFT_TENSORS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "m", "lora_magnitude_vector.weight": "m"}
_MLX_TENSORS = {"lora_a": "a", "lora_b": "b", "m": "m"}
# What PEFT can do beyond low-rank parts of linear layers, by its key in the config.
_REFUSED = ("modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication", "lora_bias", "fan_in_fan_out")


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a model.

    Args:
        path: where it was read.
        sha256: of its config and its tensors; part of every key of what was computed with it.
        parts: by the path of the module in the model.
    """

    path: Path
    sha256: str
    parts: Mapping[str, Part]


def load_adapter(path: str | os.PathLike[str], model: Any) -> Adapter:
    """Read an adapter and compare it with the model.

    Raises:
        InputError: no such directory, or it is for another model.
        FormatError: a file that is missing, damaged or asks for what is not known here.
    """
    root = Path(path)
    if not (root / CONFIG).is_file():
        raise InputError(f"{root} holds no {CONFIG}; give a directory that PEFT or mlx-lm wrote")
    config = read_json(root / CONFIG, "adapter's config", schema=None)
    file = next((root / name for name in (PEFT, MLX) if (root / name).is_file()), None)
    if file is None:
        raise InputError(f"{root} holds no {MLX} and no {PEFT}; the adapter's weights are missing")
    reader = _MlxDirectory(file, config) if file.name == MLX else _PeftDirectory(file, config)
    layers = {_canonical(name): (name, layer) for name, layer in (linear_layers(model) | expert_layers(model)).items()}
    parts = {}
    for module, tensors in _grouped(file, reader.tensors).items():
        if _canonical(module) not in layers:
            raise InputError(f"{file}: {module} is {_described(model, module)}")
        name, layer = layers[_canonical(module)]
        parts[name] = _part(file, module, tensors, layer, reader)
    digest = sha256_json({CONFIG: sha256_file(root / CONFIG), file.name: sha256_file(file)})
    return Adapter(root, digest, parts)


class _PeftDirectory:
    """How PEFT names and scales."""

    tensors = _PEFT_TENSORS
    names = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    turned = False

    def __init__(self, file: Path, config: dict[str, Any]) -> None:
        self._file, self._config = file, config
        if config.get("peft_type") != "LORA":
            raise FormatError(f"{file.parent / CONFIG}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
        asked = [key for key in _REFUSED if config.get(key)]
        if config.get("bias", "none") != "none":
            asked.append("bias")
        if asked:
            raise FormatError(
                f"{file.parent / CONFIG}: {asked[0]} is {config[asked[0]]!r}, which is not supported; train without it"
            )
        self.magnitudes = bool(config.get("use_dora"))

    def rank(self, module: str) -> int | None:
        """What the config says of a module's rank."""
        return _whole(self._file, "r", self._of(module, "rank_pattern", "r"))

    def scale(self, module: str, rank: int) -> float:
        """s."""
        alpha = _number(self._file, "lora_alpha", self._of(module, "alpha_pattern", "lora_alpha"))
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _of(self, module: str, patterns: str, key: str) -> Any:
        name = module.removeprefix("base_model.model.")
        table = self._config.get(patterns) or {}
        if not isinstance(table, dict):
            raise FormatError(f"{self._file.parent / CONFIG}: {patterns} is {table!r}, expected an object")
        for pattern, value in table.items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        return self._config.get(key)


class _MlxDirectory:
    """How mlx-lm names and scales."""

    tensors = _MLX_TENSORS
    names = ("lora_a", "lora_b", "m")
    turned = True  # its A and B are the transposes

    def __init__(self, file: Path, config: dict[str, Any]) -> None:
        self._file, self._config = file, config
        kind = config.get("fine_tune_type", "lora")
        if kind not in ("lora", "dora"):
            raise FormatError(f"{file.parent / CONFIG}: fine_tune_type is {kind!r}, expected 'lora' or 'dora'")
        parameters = config.get("lora_parameters")
        if not isinstance(parameters, dict):
            raise FormatError(f"{file.parent / CONFIG}: no lora_parameters, expected rank and scale")
        self._parameters: dict[str, Any] = parameters
        self.magnitudes = kind == "dora"

    def rank(self, module: str) -> int | None:
        """What the config says of a module's rank; None where every module has its own (`optiq` in the config)."""
        return None if "optiq" in self._config else _whole(self._file, "rank", self._parameters.get("rank"))

    def scale(self, module: str, rank: int) -> float:
        """s."""
        return _number(self._file, "scale", self._parameters.get("scale"))


def _part(file: Path, module: str, tensors: dict[str, mx.array], layer: Any, reader: _PeftDirectory | _MlxDirectory) -> Part:
    """The tensors of one module, in our shapes, compared with its layer."""
    wanted = ("a", "b", "m") if reader.magnitudes else ("a", "b")
    spelled = dict(zip(("a", "b", "m"), reader.names, strict=True))
    for key in spelled:
        if (key in tensors) != (key in wanted):
            there = "is there, but the config says no DoRA" if key in tensors else "is missing"
            raise FormatError(f"{file}: {module}.{spelled[key]} {there}; write the adapter again")
    *experts, outputs, inputs = weight_shape(layer)
    if experts and reader.magnitudes:
        raise FormatError(f"{file}: {module} is a bank of experts, for which there is no DoRA; train the adapter without it")
    turned = reader.turned and not experts  # mlx-lm's A and B of experts are as ours
    rank = reader.rank(module) or tensors["a"].shape[-1 if turned else -2]
    shapes = {"a": (*experts, rank, inputs), "b": (*experts, outputs, rank), "m": (outputs,)}
    for key in wanted:
        expected = shapes[key][::-1] if turned else shapes[key]
        if tensors[key].shape != expected:
            raise InputError(f"{file}: {module}.{spelled[key]} has shape {tensors[key].shape}, expected {expected}")
        if not mx.isfinite(tensors[key]).all().item():
            raise FormatError(f"{file}: {module}.{spelled[key]} holds NaN or infinity; the training has diverged")
    a, b = (tensors[key].T if turned else tensors[key] for key in ("a", "b"))
    return Part(a, b, reader.scale(module, rank), tensors.get("m"))


def _grouped(file: Path, kinds: Mapping[str, str]) -> dict[str, dict[str, mx.array]]:
    """Module -> kind -> tensor."""
    try:
        tensors = mx.load(str(file))
    except (RuntimeError, ValueError, OSError) as error:
        raise FormatError(f"{file} cannot be read ({error}); copy or write it again") from None
    assert isinstance(tensors, dict)
    found: dict[str, dict[str, mx.array]] = {}
    for name, tensor in tensors.items():
        ending = next((ending for ending in kinds if name.endswith("." + ending)), None)
        if ending is None or not mx.issubdtype(tensor.dtype, mx.floating):
            told = ", ".join(kinds)
            raise FormatError(f"{file}: {name} of type {tensor.dtype} is no part of a linear layer's adapter, expected {told}")
        found.setdefault(name.removesuffix("." + ending), {})[kinds[ending]] = tensor
    if not found:
        raise FormatError(f"{file} holds no tensors; write the adapter again")
    return found


def _canonical(module: str) -> str:
    """A module's name without what wrappers put before it."""
    parts = module.split(".")
    while len(parts) > 1 and parts[0] in _PREFIXES:
        parts.pop(0)
    return ".".join(parts)


def _described(model: Any, module: str) -> str:
    """What a module is that is not among the linear layers."""
    kinds = {_canonical(name): type(layer).__name__ for name, layer in model.named_modules()}
    if kind := kinds.get(_canonical(module)):
        return f"a layer of kind {kind}, expected linear layers; train the adapter without it"
    return "no layer of this model; the adapter is for another one"


def _whole(file: Path, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FormatError(f"{file.parent / CONFIG}: {key} is {value!r}, expected a whole number of at least 1")
    return value


def _number(file: Path, key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise FormatError(f"{file.parent / CONFIG}: {key} is {value!r}, expected a number")
    return float(value)
