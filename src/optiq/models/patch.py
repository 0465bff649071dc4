"""The one change to the stock package that we offer: attention that a cache computes itself, for models of plain mlx-lm.

mlx-lm's architecture files import `scaled_dot_product_attention` by name, so it is replaced in every loaded module of
`mlx_lm.models` that has it, `base` included, from which modules that are loaded later take theirs. `remove` undoes all of it.
Our own models need none of this: `optiq.models.arch`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_NAME = "scaled_dot_product_attention"
_PACKAGE = "mlx_lm.models"


class _Patched:
    """mlx-lm's function for every cache that does not attend itself."""

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __call__(self, queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: Any = None) -> Any:
        if hasattr(cache, "attend"):
            return cache.attend(queries, scale, mask, sinks)
        return self.stock(queries, keys, values, cache, scale, mask, sinks)


def apply(classes: tuple[type, ...] = ()) -> None:
    """Replace mlx-lm's attention, wherever it is, and let `load_prompt_cache` know cache classes by name. Twice is once."""
    base = importlib.import_module(f"{_PACKAGE}.base")
    caches = importlib.import_module(f"{_PACKAGE}.cache")
    for cls in classes:
        if not hasattr(caches, cls.__name__):
            setattr(caches, cls.__name__, cls)
    stock = getattr(base, _NAME)
    if isinstance(stock, _Patched):
        patched, stock = stock, stock.stock
    else:
        patched = _Patched(stock)
    for module in _modules():
        if getattr(module, _NAME, None) is stock:
            setattr(module, _NAME, patched)


def remove(classes: tuple[type, ...] = ()) -> None:
    """Put everything back, in modules that were loaded since too."""
    caches = importlib.import_module(f"{_PACKAGE}.cache")
    for cls in classes:
        if getattr(caches, cls.__name__, None) is cls:
            delattr(caches, cls.__name__)
    for module in _modules():
        found = getattr(module, _NAME, None)
        if isinstance(found, _Patched):
            setattr(module, _NAME, found.stock)


def _modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{_PACKAGE}.") and isinstance(module, ModuleType):
            yield module
