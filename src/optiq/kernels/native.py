"""The door to the native CPU kernels: which are in use, and why.

The extension `optiq.kernels._native` (sources in `native/`) is used where it was built, loads, was built against the MLX
that is installed, finds an x86-64 processor with AVX2 or better, and MLX computes on the CPU. Everything else computes
with the definitions in this package, which are plain MLX operations.

Environment: `OPTIQ_KERNELS` is ``auto`` (native where possible, one warning where it should be and is not), ``native``
(native or an error), ``reference`` (definitions alone) or the name of an instruction level (``avx2``, ``avx512``,
``avx512-vnni``, ``amx``: native, no better than that); `OPTIQ_THREADS` bounds the threads.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from optiq.errors import InputError, ResourceError
from optiq.kernels import blas

LEVELS = ("avx2", "avx512", "avx512-vnni", "amx")
MODES = ("auto", "native", "reference", *LEVELS)

_logger = logging.getLogger("optiq")


@dataclass(frozen=True)
class Choice:
    """Which kernels compute on the CPU.

    Args:
        name: ``native``, ``reference``, or ``stock`` where MLX's own kernels are fast (Metal, CUDA).
        level: the instruction level of native kernels, else "".
        threads: of the pool; 0 where there is none.
        reason: one line for a reader of `optiq doctor`.
    """

    name: str
    level: str
    threads: int
    reason: str


def module() -> ModuleType | None:
    """The extension where it is in use, else None."""
    return _load()[0]


def choice() -> Choice:
    """What was chosen.

    Raises:
        InputError: `OPTIQ_KERNELS` is not one of `MODES`.
        ResourceError: it asks for native kernels that cannot be had.
    """
    return _load()[1]


@cache
def _load() -> tuple[ModuleType | None, Choice]:
    wish = os.environ.get("OPTIQ_KERNELS", "") or "auto"
    if wish not in MODES:
        raise InputError(f"OPTIQ_KERNELS is {wish!r}, expected one of {', '.join(MODES)}")
    if wish == "reference":
        return None, Choice("reference", "", 0, "OPTIQ_KERNELS=reference")
    import mlx.core as mx

    if mx.default_device() != mx.Device(mx.cpu) and wish == "auto":
        return None, Choice("stock", "", 0, f"MLX computes on {mx.default_device().type}")
    found, trouble = _extension()
    if found is None:
        if wish != "auto":
            raise ResourceError(f"OPTIQ_KERNELS={wish}: {trouble}")
        if sys.platform == "linux":
            _logger.warning("optiq: no native kernels, models will be slow (about 1/50): %s; see `optiq doctor`", trouble)
        return None, Choice("reference", "", 0, trouble)
    levels = found.levels()
    if wish in LEVELS:
        if wish not in levels:
            raise ResourceError(f"OPTIQ_KERNELS={wish}: this processor has {', '.join(levels)}")
        found.set_level(wish)
    found.set_threads(blas.threads())
    reason = f"best of {found.cpu_features()}" if wish not in LEVELS else f"OPTIQ_KERNELS={wish}"
    return found, Choice("native", found.level(), found.threads(), reason)


def _extension() -> tuple[ModuleType | None, str]:
    """The extension, or None and why not."""
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform != "linux":
        return None, f"there are none for {sys.platform} {platform.machine()}"
    path = _path()
    if path is None:
        return None, "they were not built (no C++ compiler at install time); install g++ and reinstall optiq"
    import mlx.core as mx

    name = "optiq.kernels._native"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    try:
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    except ImportError as error:
        return None, f"{path} cannot be loaded ({error}); reinstall optiq"
    if found.mlx_version != mx.__version__:
        return None, f"they were built against MLX {found.mlx_version} and {mx.__version__} is installed; reinstall optiq"
    if not found.levels():
        return None, "this processor has no AVX2"
    sys.modules[name] = found
    return found, ""


def _path() -> Path | None:
    """Beside this module or, for an editable install, in site-packages."""
    for place in (Path(__file__).parent, Path(sysconfig.get_path("platlib"), "optiq", "kernels")):
        for path in sorted(place.glob("_native.*so")):
            return path
    return None
