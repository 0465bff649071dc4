"""Random adapters as PEFT and as mlx-lm write them, for the linear layers of a loaded model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from optiq.models.adapted import expert_layers, linear_layers, weight_shape


def paths(model: nn.Module, *endings: str) -> list[str]:
    """The linear layers and banks of experts whose paths end so."""
    return [path for path in _layers(model) if path.endswith(endings)]


def _layers(model: nn.Module) -> dict[str, Any]:
    return linear_layers(model) | expert_layers(model)


def _random(model: nn.Module, modules: Sequence[str], rank: int, seed: int, dora: bool) -> dict[str, tuple[mx.array, ...]]:
    """Module -> A [R, I], B [O, R] and, for DoRA, m [O]; as large as the weights, so that nothing can be overlooked."""
    rng, layers, found = np.random.default_rng(seed), _layers(model), {}
    for module in modules:
        *experts, outputs, inputs = weight_shape(layers[module])
        a, b = rng.standard_normal((*experts, rank, inputs)), rng.standard_normal((*experts, outputs, rank))
        arrays = [a / math.sqrt(inputs), 0.3 * b]
        if dora:
            arrays.append(0.5 + rng.random(outputs))
        found[module] = tuple(mx.array(array.astype(np.float32)) for array in arrays)
    return found


def write_peft(path: Path, model: nn.Module, modules: Sequence[str], rank: int = 4, seed: int = 0, **config: Any) -> Path:
    """A directory as PEFT writes it; `config` replaces entries of its config."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b, *m) in _random(model, modules, rank, seed, config.get("use_dora", False)).items():
        name = f"base_model.model.{module.removeprefix('language_model.')}"
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        tensors |= {f"{name}.lora_magnitude_vector": one for one in m}
    mx.save_safetensors(str(path / "adapter_model.safetensors"), tensors)
    defaults = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", "target_modules": list(modules)}
    (path / "adapter_config.json").write_text(json.dumps({**defaults, **config}))
    return path


def _turned(x: mx.array) -> mx.array:
    """As mlx-lm has A and B: transposed, but for experts."""
    return x if x.ndim == 3 else mx.contiguous(x.T)


def write_mlx(path: Path, model: nn.Module, modules: Sequence[str], rank: int = 4, seed: int = 0, **config: Any) -> Path:
    """A directory as mlx-lm writes it; `config` replaces entries of its config."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b, *m) in _random(model, modules, rank, seed, config.get("fine_tune_type") == "dora").items():
        tensors |= {f"{module}.lora_a": _turned(a), f"{module}.lora_b": _turned(b)}
        tensors |= {f"{module}.m": one for one in m}
    mx.save_safetensors(str(path / "adapters.safetensors"), tensors)
    parameters = {"rank": rank, "scale": 2.0, "dropout": 0.0, "keys": sorted({m.split(".", 4)[-1] for m in modules})}
    defaults = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (path / "adapter_config.json").write_text(json.dumps({**defaults, **config}))
    return path
