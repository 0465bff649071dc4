"""The state of a training run on disk, from which it goes on to the same bits.

    OUT/state/state.json            schema 1: key, step, and what else the run remembers
    OUT/state/tensors.safetensors   parameters, both moments of AdamW, the best parameters; <kind>/<path>/<a|b|m>

Data in and out: trees of arrays by kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from optiq import files
from optiq.errors import InputError
from optiq.lora.learner import Parameters
from optiq.lora.save import save_tensors

FOLDER = "state"
_FACTS, _TENSORS = "state.json", "tensors.safetensors"


def save(output: Path, key: str, facts: Mapping[str, Any], trees: Mapping[str, Parameters]) -> None:
    """Replace the state in one visible step.

    Args:
        output: the run's directory.
        key: of everything that decides the result.
        facts: what JSON can hold.
        trees: by kind.
    """
    tensors = {
        f"{kind}/{path}/{name}": array
        for kind, tree in trees.items()
        for path, part in tree.items()
        for name, array in part.items()
    }
    with files.building(output / FOLDER, overwrite=True) as folder:
        save_tensors(folder / _TENSORS, tensors)
        files.write_json(folder / _FACTS, {"schema": 1, "key": key, **facts})


def present(output: Path) -> bool:
    """Whether a run was interrupted there."""
    return (output / FOLDER / _FACTS).is_file()


def load(output: Path, key: str, paths: Iterable[str]) -> tuple[dict[str, Any], dict[str, Parameters]] | None:
    """The facts and trees of an interrupted run; None where there is none.

    Args:
        output: the run's directory.
        key: as it was saved.
        paths: of the adapters, in the order of a fresh run: sums over a tree depend on it.

    Raises:
        InputError: the run that was interrupted is another one.
    """
    folder = output / FOLDER
    if not (folder / _FACTS).is_file():
        return None
    facts = files.read_json(folder / _FACTS, "state of a training run")
    if facts["key"] != key:
        raise InputError(f"{output} holds an interrupted run with other settings or data; use --overwrite, or another -o")
    trees: dict[str, Parameters] = {}
    tensors = mx.load(str(folder / _TENSORS))
    assert isinstance(tensors, dict)
    for name, array in tensors.items():
        kind, path, part = name.split("/")
        trees.setdefault(kind, {}).setdefault(path, {})[part] = array
    return facts, {kind: {path: dict(sorted(tree[path].items())) for path in paths} for kind, tree in trees.items()}
