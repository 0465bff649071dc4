"""Caches in a file, in the layout of mlx-lm's `save_prompt_cache`: it reads what this writes where it knows the classes.

A file holds the leaves of every cache's `state` under their paths, plain values as arrays; its metadata the user's texts, the
class of each cache, and which leaves are plain values. Data in and out: mlx-lm's cache objects and others with `state`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from optiq.errors import FormatError, InputError
from optiq.models.caches import Caches
from optiq.models.save import write_safetensors


def save(path: str | os.PathLike[str], caches: Caches, metadata: Mapping[str, str]) -> None:
    """Write caches in one visible step.

    Raises:
        ResourceError: the disk is full.
        InputError: the place cannot be written.
    """
    scalars: list[Any] = [""]  # an empty list would vanish
    arrays = {}
    for name, leaf in tree_flatten([cache.state for cache in caches]):
        arrays[name], kind = _as_array(leaf)
        if kind:
            scalars.append((name, kind))
    names = [_name(cache) for cache in caches]
    write_safetensors(Path(path), arrays, dict(tree_flatten([dict(metadata), names, scalars])))


def load(path: str | os.PathLike[str], own: Mapping[str, type]) -> tuple[Caches, dict[str, str]]:
    """The caches of a file and its texts.

    Args:
        path: the file.
        own: classes beside those of mlx-lm, by name.

    Raises:
        InputError: no such file.
        FormatError: it is damaged, or no file of caches.
    """
    if not Path(path).is_file():
        raise InputError(f"no saved caches at {path}")
    try:
        arrays, flat = mx.load(str(path), format="safetensors", return_metadata=True)
        metadata, names, scalars = tree_unflatten(list(flat.items()))
        for name, kind in scalars[1:]:
            arrays[name] = _as_value(arrays[name], kind)
        states = tree_unflatten(list(arrays.items()))
        found = [_restored(name, state, own) for name, state in zip(names, states, strict=True)]
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise FormatError(f"{path} holds no caches that can be read ({error}); make it again") from None
    return found, metadata or {}


def _name(cache: Any) -> str:
    from mlx_lm.models.cache import KVCache

    return "KVCache" if isinstance(cache, KVCache) else type(cache).__name__  # our appending form of it is the same in a file


def _restored(name: str, state: Any, own: Mapping[str, type]) -> Any:
    from mlx_lm.models import cache as stock

    if name == "CacheList":
        return stock.CacheList(*(_restored(inner, part, own) for part, inner in state))
    cls: Any = own.get(name) or getattr(stock, name)
    return cls.from_state(state)


def _as_array(leaf: Any) -> tuple[mx.array, str]:
    """The array that stands for a leaf, and what kind of plain value it is; none for an array."""
    if isinstance(leaf, mx.array):
        return leaf, ""
    if leaf is None:
        return mx.array([]), "none"
    if isinstance(leaf, str):
        return mx.array([ord(char) for char in leaf]), "string"
    return mx.array(leaf), "scalar"


def _as_value(array: mx.array, kind: str) -> Any:
    if kind == "none":
        return None
    return "".join(map(chr, array.tolist())) if kind == "string" else array.item()  # type: ignore[arg-type]
