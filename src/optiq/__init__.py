"""optiq: the best model that fits a memory budget, in the stock MLX format, with a measured proof.

    import optiq
    optiq.convert("Qwen/Qwen3.5-0.8B", "out", target_bpw=5.0)
    model, tokenizer = optiq.load("out")

The public verbs load their modules on first use, so that `import optiq` costs next to nothing. Importing it before
`mlx.core` also lets MLX on a Linux CPU use a fast BLAS (`optiq.kernels.blas`).

An independent implementation: not affiliated with, derived from or endorsed by the `mlx-optiq` package. Commands and
files are compatible on purpose.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

_VERBS = {  # verb -> the module that holds the function of that name
    "convert": "optiq.quantize.pipeline",
    "load": "optiq.models.load",
    "strip_reasoning": "optiq.models.thinking",
}

__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'optiq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_VERBS})


class _BeforeMlx:
    """A finder that finds nothing: it prepares the BLAS at the moment when somebody imports `mlx.core`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "mlx.core" and self in sys.meta_path:
            sys.meta_path.remove(self)
            importlib.import_module("optiq.kernels.blas").preload()


if "mlx.core" in sys.modules:
    importlib.import_module("optiq.kernels.blas").preload()  # too late to help: says so once
else:
    sys.meta_path.insert(0, _BeforeMlx())
