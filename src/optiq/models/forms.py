"""Modules with another class: a subclass of their own, so that `isinstance`, parents and saved names stay what they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.nn as nn


@cache
def formed(kind: type, form: type) -> type:
    """The class `kind` with the methods of `form` before its own."""
    return type(kind.__name__, (form, kind), {"__doc__": form.__doc__})


@contextmanager
def forming(modules: Iterable[tuple[nn.Module, Any]], form: type, name: str) -> Iterator[None]:
    """Give modules a form while the context lasts.

    Args:
        modules: each once, with a value that it holds meanwhile.
        form: what their classes get.
        name: of that value in a module's `__dict__`.
    """
    plain = []
    try:
        for module, value in modules:
            plain.append((module, type(module)))
            module.__dict__[name] = value
            module.__class__ = formed(type(module), form)
        yield
    finally:
        for module, kind in plain:
            module.__class__ = kind
            del module.__dict__[name]
