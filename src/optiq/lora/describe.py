"""What an adapter's directory says of itself, without the model that it is for.

Data in: a directory that PEFT, mlx-lm or we wrote. Data out: JSON.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx

from optiq.errors import InputError
from optiq.files import read_json
from optiq.lora.adapters import CONFIG, MLX, PEFT


def describe(path: Path) -> dict[str, Any]:
    """Kind, ranks, parameters and training of an adapter.

    Raises:
        InputError: no adapter there.
    """
    if not (path / CONFIG).is_file():
        raise InputError(f"{path} holds no {CONFIG}; give a directory that `optiq lora train`, PEFT or mlx-lm wrote")
    config = read_json(path / CONFIG, "adapter's config", schema=None)
    file = next((path / name for name in (PEFT, MLX) if (path / name).is_file()), None)
    if file is None:
        raise InputError(f"{path} holds no {PEFT} and no {MLX}; the adapter's weights are missing")
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    first = ".lora_A.weight" if file.name == PEFT else ".lora_a"
    ranks = {}
    for name, tensor in tensors.items():
        if name.endswith(first):
            turned = file.name == MLX and tensor.ndim == 2
            ranks[name.removesuffix(first).removeprefix("base_model.model.")] = tensor.shape[-1 if turned else -2]
    training = config.get("optiq", {})
    return {
        "path": str(path),
        "base_model": config.get("base_model_name_or_path"),
        "kind": "dora" if config.get("use_dora") or config.get("fine_tune_type") == "dora" else "lora",
        "files": [name for name in (PEFT, MLX) if (path / name).is_file()],
        "parameters": sum(int(tensor.size) for tensor in tensors.values()),
        "ranks": ranks,
        "rank_counts": dict(sorted(Counter(ranks.values()).items())),
        "modules": sorted({name.rpartition(".")[2] for name in ranks}),
        "training": training,
    }
