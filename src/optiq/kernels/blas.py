"""A fast BLAS in the place of the one that MLX's CPU wheel bundles.

The Linux CPU wheel brings the netlib reference BLAS: 5 GF/s for float32 products on two Zen 4 cores, against 100 with
OpenBLAS (512x2048x2048). libmlx finds `cblas_sgemm` by name when it is loaded, so a library that offers the name to
the whole process beforehand takes its place. It reaches float32, float64 and complex64 products and the linear
algebra; not bfloat16 products and not `quantized_matmul`.

`optiq` calls `preload` when the process first imports `mlx.core` (see `optiq/__init__.py`); nobody else has to.
Apple Silicon and CUDA need none of this. Imports neither MLX nor NumPy.

Environment: `OPTIQ_BLAS` names a library to use, or `none`; `OPTIQ_THREADS` bounds the threads (default: the cores
that this process may use).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import importlib.util
import logging
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optiq.errors import InputError

SHIM_NAME = "liboptiq_blas.so"
SYSTEM_LIBRARIES = ("openblas", "mkl_rt", "blis")
# OpenBLAS workers spin for 2^n cycles before they sleep; its default, 26, burns a core for 20 ms after each product.
# 12 (a microsecond) was not slower on 512x2048x2048.
IDLE_SPIN_EXPONENT = 12
MOST_THREADS = 1024  # no machine has use for more, and the kernel does not give any number

_logger = logging.getLogger("optiq")


@dataclass(frozen=True)
class BlasChoice:
    """Which BLAS serves MLX's CPU backend.

    Args:
        name: ``openblas``, ``mkl_rt``, ``blis``, a file name, ``platform`` (nothing to do) or ``bundled`` (slow).
        path: the library, or "".
        how: ``environment``, ``wheel``, ``system`` or ``none``.
        reason: one line for a reader of `optiq doctor`.
        threads: how many threads it was given; 0 where it was left alone.
    """

    name: str
    path: str
    how: str
    reason: str
    threads: int = 0

    @property
    def fast(self) -> bool:
        """Whether float32 products run at the machine's speed, as far as can be told without a measurement."""
        return self.name != "bundled"


_choice: BlasChoice | None = None


def preload() -> BlasChoice:
    """Put the best BLAS at hand before MLX; later calls return the first answer.

    Order: `OPTIQ_BLAS`, the scipy-openblas32 wheel through our forwarding library, a system library, none.

    Raises:
        InputError: `OPTIQ_BLAS` or `OPTIQ_THREADS` is set to something that cannot be used.
    """
    global _choice
    if _choice is None:
        if sys.platform == "linux":
            # SciPy brings an OpenBLAS of its own, loaded later: it must not spin either, and must keep to our threads.
            os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", str(IDLE_SPIN_EXPONENT))
            os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads()))
        _choice = _choose()
        if not _choice.fast and os.environ.get("OPTIQ_BLAS") != "none":
            _logger.warning("optiq: float32 products will be slow (about 1/20): %s; see `optiq doctor`", _choice.reason)
    return _choice


def threads() -> int:
    """How many threads native code may use: `OPTIQ_THREADS`, else the cores open to this process.

    Raises:
        InputError: `OPTIQ_THREADS` is not a whole number from 1 to 1024.
    """
    text = os.environ.get("OPTIQ_THREADS", "")
    if not text:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, MOST_THREADS)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MOST_THREADS:
        raise InputError(f"OPTIQ_THREADS is {text!r}, expected a whole number from 1 to {MOST_THREADS}")
    return int(text)


def _choose() -> BlasChoice:
    if sys.platform != "linux":
        return BlasChoice("platform", "", "none", f"MLX on {sys.platform} brings a fast BLAS")
    cuda = _installed("mlx-cuda-13", "mlx-cuda-12")
    if cuda:
        return BlasChoice("platform", "", "none", f"{cuda} computes on the GPU")
    wish = os.environ.get("OPTIQ_BLAS", "")
    if wish == "none":
        return BlasChoice("bundled", "", "none", "switched off by OPTIQ_BLAS=none")
    if "mlx.core" in sys.modules:
        return BlasChoice("bundled", "", "none", "too late: mlx.core was imported before optiq; import optiq first")
    with _thread_settings(threads()):
        if wish:
            return _from_environment(wish)
        wheel, trouble = _from_wheel()
        return wheel or _from_system() or BlasChoice("bundled", "", "none", trouble)


def _from_environment(wish: str) -> BlasChoice:
    try:
        _load_globally(wish)
    except OSError as error:
        raise InputError(f"OPTIQ_BLAS={wish} cannot be loaded ({error}); name a BLAS library or `none`") from None
    return BlasChoice(Path(wish).name, wish, "environment", "named by OPTIQ_BLAS", threads())


def _from_wheel() -> tuple[BlasChoice | None, str]:
    """The scipy-openblas32 wheel behind our shim, or None and the reason."""
    shim = shim_path()
    if shim is None:
        return None, f"{SHIM_NAME} was not built (no C compiler at install time) and no system BLAS was found"
    spec = importlib.util.find_spec("scipy_openblas32")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        return None, "the scipy-openblas32 package is missing: pip install scipy-openblas32"
    library = Path(folders[0], "lib", "libscipy_openblas.so")
    try:
        connect = ctypes.CDLL(str(shim)).optiq_blas_connect
        connect.restype, connect.argtypes = ctypes.c_char_p, (ctypes.c_char_p, ctypes.c_char_p)
        problem = connect(os.fsencode(library), b"scipy_")
        if problem is not None:
            return None, problem.decode(errors="replace")
        ctypes.CDLL(str(shim), mode=ctypes.RTLD_GLOBAL)
    except (OSError, AttributeError) as error:
        return None, f"{shim} cannot be used: {error}"
    reason = f"scipy-openblas32 {importlib.metadata.version('scipy-openblas32')} through {SHIM_NAME}"
    return BlasChoice("openblas", str(library), "wheel", reason, threads()), ""


def _from_system() -> BlasChoice | None:
    for name in SYSTEM_LIBRARIES:
        path = ctypes.util.find_library(name)
        if path is None:
            continue
        try:
            _load_globally(path)
        except OSError:
            continue
        return BlasChoice(name, path, "system", f"{path} of this system", threads())
    return None


def _load_globally(path: str) -> None:
    """Load a library that offers plain BLAS names to the whole process; OSError if it does not offer them."""
    library = ctypes.CDLL(path)
    if not hasattr(library, "cblas_sgemm"):
        raise OSError(f"{path} has no symbol cblas_sgemm")
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def shim_path() -> Path | None:
    """The forwarding library, beside this module or, for an editable install, in site-packages; None if not built."""
    places = (Path(__file__).parent, Path(sysconfig.get_path("platlib"), "optiq", "kernels"))
    return next((place / SHIM_NAME for place in places if (place / SHIM_NAME).is_file()), None)


@contextmanager
def _thread_settings(count: int) -> Iterator[None]:
    """Environment that BLAS libraries read once, while they are loaded; put back afterwards."""
    wanted = {
        "OPENBLAS_NUM_THREADS": str(count),
        "OPENBLAS_THREAD_TIMEOUT": str(IDLE_SPIN_EXPONENT),
        "MKL_NUM_THREADS": str(count),
        "BLIS_NUM_THREADS": str(count),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _installed(*distributions: str) -> str:
    """The first of the distributions that is installed, or ""."""
    for name in distributions:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    return ""
