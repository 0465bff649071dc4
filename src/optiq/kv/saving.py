"""Caches in a file: the layout of mlx-lm's `save_prompt_cache`, written in one visible step, with our kinds by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from optiq.kv.cache import PackedCache
from optiq.kv.turboquant import TurboQuantKVCache, VOnlyTurboQuantCache
from optiq.models import cachefile
from optiq.models.caches import Caches

CLASSES: Mapping[str, type] = {cls.__name__: cls for cls in (PackedCache, TurboQuantKVCache, VOnlyTurboQuantCache)}


def save_caches(path: str | os.PathLike[str], caches: Caches, metadata: Mapping[str, str] | None = None) -> None:
    """Write the caches of a model, of any kinds, and a few texts."""
    cachefile.save(path, caches, dict(metadata or {}))


def load_caches(path: str | os.PathLike[str]) -> tuple[Caches, dict[str, Any]]:
    """The caches and texts of a file that `save_caches` or mlx-lm wrote.

    Raises:
        InputError: no such file.
        FormatError: it is damaged, or no file of caches.
    """
    return cachefile.load(path, CLASSES)
