"""Adapters written to disk: one directory that PEFT, stock mlx-lm and our engine read.

    adapter_model.safetensors    PEFT's names; each module has its own rank and alpha (rank_pattern, alpha_pattern)
    adapters.safetensors         mlx-lm's names; one rank and one scale for all: smaller ranks are padded with zeros, differences
                                 of s are put into B
    adapter_config.json          the keys of both

PEFT has no adapters for mlx-lm's banks of experts: where there are some, only mlx-lm's file is written.
Data in: `Part`s by path, facts. Data out: files, each whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import mlx.core as mx

from optiq import files
from optiq.errors import InputError
from optiq.lora.adapters import CONFIG, MLX, PEFT
from optiq.lora.layers import Part

_PREFIX = "language_model."


def write(path: Path, parts: Mapping[str, Part], base_model: str, facts: Mapping[str, Any], rslora: bool = False) -> None:
    """Write an adapter's files; what else is in the directory stays.

    Args:
        path: the directory, made where it is missing.
        parts: by the path of the module in the loaded model.
        base_model: what the adapter is for, as the user names it.
        facts: kept under ``optiq`` in the config.
        rslora: whether PEFT shall divide alpha by sqrt(r) instead of r.

    Raises:
        InputError: DoRA in some parts and not in others.
    """
    magnitudes = {part.magnitude is not None for part in parts.values()}
    if len(magnitudes) > 1:
        raise InputError("some modules have magnitudes (DoRA) and some have none; expected one kind")
    dora = magnitudes == {True}
    path.mkdir(parents=True, exist_ok=True)
    config = _config(parts, base_model, dora, rslora) | {"optiq": dict(facts)}
    save_tensors(path / MLX, _mlx_tensors(parts))
    if not any(part.a.ndim == 3 for part in parts.values()):
        save_tensors(path / PEFT, _peft_tensors(parts))
    files.write_json(path / CONFIG, config)


def save_tensors(path: Path, tensors: Mapping[str, mx.array]) -> None:
    """Write a safetensors file in one visible step."""
    with files.writing(path, sum(int(tensor.nbytes) for tensor in tensors.values())) as file:
        mx.save_safetensors(cast(BinaryIO, file), dict(tensors), metadata={"format": "pt"})


def _config(parts: Mapping[str, Part], base_model: str, dora: bool, rslora: bool) -> dict[str, Any]:
    ranks = {_peft_name(path): int(part.a.shape[-2]) for path, part in parts.items()}
    alphas = {
        _peft_name(path): part.scale * (math.sqrt(part.a.shape[-2]) if rslora else part.a.shape[-2])
        for path, part in parts.items()
    }
    rank = max(ranks.values())
    alpha = max(alphas.values())
    inside = {path.partition("layers.")[2].partition(".")[2] or path for path in parts}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: found for name, found in ranks.items() if found != rank},
        "alpha_pattern": {name: found for name, found in alphas.items() if found != alpha},
        "target_modules": list(ranks),
        "use_dora": dora,
        "use_rslora": rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": rank, "scale": _scale(parts), "dropout": 0.0, "keys": sorted(inside)},
    }


def _scale(parts: Mapping[str, Part]) -> float:
    """The one s of mlx-lm's file."""
    return max(part.scale for part in parts.values())


def _peft_name(path: str) -> str:
    """A module's path in the transformers model for text."""
    return path.removeprefix(_PREFIX)


def _peft_tensors(parts: Mapping[str, Part]) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for path, part in parts.items():
        name = f"base_model.model.{_peft_name(path)}"
        found |= {f"{name}.lora_A.weight": part.a, f"{name}.lora_B.weight": part.b}
        if part.magnitude is not None:
            found[f"{name}.lora_magnitude_vector"] = part.magnitude
    return found


def _mlx_tensors(parts: Mapping[str, Part]) -> dict[str, mx.array]:
    rank, scale = max(part.a.shape[-2] for part in parts.values()), _scale(parts)
    found: dict[str, mx.array] = {}
    for path, part in parts.items():
        a, b = _padded(part.a, rank, -2), _padded(part.b * (part.scale / scale), rank, -1)
        turned = (a, b) if a.ndim == 3 else (mx.contiguous(a.T), mx.contiguous(b.T))
        found |= {f"{path}.lora_a": turned[0], f"{path}.lora_b": turned[1]}
        if part.magnitude is not None:
            found[f"{path}.m"] = part.magnitude
    return found


def _padded(x: mx.array, rank: int, axis: int) -> mx.array:
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, rank - x.shape[axis])
    return mx.pad(x, pads)


def present(path: str | os.PathLike[str]) -> bool:
    """Whether a directory holds an adapter."""
    return (Path(path) / CONFIG).is_file()
