"""`optiq doctor`: what this machine offers, measured, and what to do about what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass

from optiq import __version__
from optiq.errors import EXIT_OK, EXIT_USER
from optiq.events import Events

EXAMPLE = """\
example:
  optiq doctor
"""

MLX_BACKENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-13", "mlx-cuda-12")
PROBE_SHAPE = (512, 2048, 2048)  # rows, inner, columns: the size of a projection over a calibration sample
PROBE_REPEATS = 5
SLOW_RATIO = 3.0  # a preloaded BLAS that gains less than this over the bundled one is not doing its work
LOW_DISK_BYTES = 5_000_000_000

# Runs in a process of its own, because a BLAS is chosen once, before MLX is loaded.
_PROBE = """
import json, sys, time
import optiq
import mlx.core as mx
import numpy as np
n, k, m, repeats = map(int, sys.argv[1:])
a, b = mx.random.normal((n, k), key=mx.random.key(0)), mx.random.normal((k, m), key=mx.random.key(1))
mx.eval(a, b)
best = float("inf")
for _ in range(repeats):
    start = time.perf_counter()
    c = a @ b
    mx.eval(c)
    best = min(best, time.perf_counter() - start)
exact = np.array(a[:8]).astype(np.float64) @ np.array(b).astype(np.float64)
error = float(np.abs(np.array(c[:8]) - exact).max() / np.abs(exact).max())
print(json.dumps({"gflops": 2 * n * k * m / best / 1e9, "error": error, "device": str(mx.default_device())}))
"""

QUANTIZED_SHAPE = (8192, 2048)  # weight rows and columns: beyond the second-level cache of every core, quick to make
_QUANTIZED_PROBE = """
import json, sys, time
import optiq
import mlx.core as mx
import numpy as np
from optiq.kernels.quantized import quantized_matmul
rows, columns, repeats = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
codes = mx.array(rng.integers(0, 2**32, (rows, columns // 8), dtype=np.uint32))
scales = mx.array(rng.standard_normal((rows, columns // 64)).astype(np.float32))
biases, x = -7.5 * scales, mx.array(rng.standard_normal((1, columns)).astype(np.float32))
mx.eval(codes, scales, biases, x)
best = float("inf")
for _ in range(repeats):
    start = time.perf_counter()
    y = quantized_matmul(x, codes, scales, biases, group_size=64, bits=4)
    mx.eval(y)
    best = min(best, time.perf_counter() - start)
some = slice(0, 64)
dense = np.array(mx.dequantize(codes[some], scales[some], biases[some], 64, 4)).astype(np.float64)
exact = np.array(x).astype(np.float64) @ dense.T
error = float(np.abs(np.array(y[:, some]) - exact).max() / np.abs(exact).max())
print(json.dumps({"ms": best * 1e3, "gb_s": (codes.nbytes + scales.nbytes + biases.nbytes) / best / 1e9, "error": error}))
"""


@dataclass(frozen=True)
class Check:
    """One row: ``status`` is ok, warn or fail; ``advice`` says what to do about the latter two."""

    name: str
    status: str
    text: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--no-measure", action="store_true", help="skip the speed measurement (a second or two)")


def run(args: argparse.Namespace, events: Events) -> int:
    """Print every check; exit code 2 if one fails."""
    from optiq.cli.output import show

    checks = [_python(), *_mlx(), _mlx_lm(), _blas(), _kernels()]
    if not args.no_measure and all(check.status != "fail" for check in checks):
        with events.stage("measure matrix products"):
            checks += [_speed(), *_kernel_speed()]
    checks += [_disk(), _hub()]
    marks = {"ok": "✓", "warn": "!", "fail": "✗"}
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{marks[check.status]} {check.name:<{width}}  {check.text}")
        if check.advice:
            lines.append(f"  {'':<{width}}  -> {check.advice}")
    failed = any(check.status == "fail" for check in checks)
    data = {"version": __version__, "ok": not failed, "checks": [asdict(check) for check in checks]}
    show(args, events, data, "\n".join([f"optiq {__version__}", *lines]))
    return EXIT_USER if failed else EXIT_OK


def _python() -> Check:
    from optiq.kernels.blas import threads

    text = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {threads()} cores usable"
    return Check("machine", "ok", text)


def _mlx() -> list[Check]:
    found = {name: version for name in MLX_BACKENDS if (version := _version(name)) is not None}
    version = _version("mlx")
    if version is None:
        return [Check("mlx", "fail", "not installed", "pip install optiq")]
    if not found:
        advice = f"pip install 'mlx[cpu]=={version}' (or cuda13)"
        return [Check("mlx", "fail", f"mlx {version} without a backend", advice)]
    text = f"mlx {version}, backend {' and '.join(found)}"
    if len(found) > 1:
        keep = next((name for name in found if "cuda" in name), next(iter(found)))
        advice = f"pip uninstall -y {' '.join(found)} && pip install {keep}=={version}"
        return [Check("mlx", "warn", f"{text}: they overwrite each other's files", advice)]
    wrong = [name for name, other in found.items() if other != version]
    if wrong:
        advice = f"pip install {wrong[0]}=={version}"
        return [Check("mlx", "fail", f"{text} {found[wrong[0]]}: versions differ", advice)]
    return [Check("mlx", "ok", text)]


def _mlx_lm() -> Check:
    version = _version("mlx-lm")
    if version is None:
        return Check("mlx-lm", "fail", "not installed", "pip install 'mlx-lm>=0.32.2,<0.33'")
    return Check("mlx-lm", "ok", f"mlx-lm {version}, transformers {_version('transformers')}")


def _blas() -> Check:
    from optiq.kernels.blas import preload

    choice = preload()
    if not choice.fast:
        advice = "install a C compiler and reinstall optiq, or install OpenBLAS (libopenblas), or set OPTIQ_BLAS"
        return Check("blas", "warn", f"MLX's bundled one, slow: {choice.reason}", advice)
    used = f", {choice.threads} threads" if choice.threads else ""
    return Check("blas", "ok", f"{choice.name}: {choice.reason}{used}")


def _kernels() -> Check:
    from optiq.errors import OptiqError
    from optiq.kernels import native

    try:
        choice = native.choice()
    except OptiqError as error:
        return Check("kernels", "fail", str(error), "unset OPTIQ_KERNELS")
    if choice.name == "native":
        return Check("kernels", "ok", f"native, {choice.level} ({choice.reason}), {choice.threads} threads")
    if choice.name == "stock":
        return Check("kernels", "ok", f"MLX's own: {choice.reason}")
    return Check("kernels", "warn", f"definitions alone, slow: {choice.reason}", 'see docs/conventions.md, "Native parts"')


def _kernel_speed() -> list[Check]:
    """A 4-bit product for one token with the chosen kernels and with the definition."""
    from optiq.kernels import native

    if native.module() is None:
        return []
    rows, columns = QUANTIZED_SHAPE
    times = {}
    for name, mode in (("native", os.environ.get("OPTIQ_KERNELS") or "auto"), ("reference", "reference")):
        done = _probe({"OPTIQ_KERNELS": mode}, _QUANTIZED_PROBE, QUANTIZED_SHAPE)
        if "problem" in done:
            return [Check("4-bit speed", "fail", f"{name}: {done['problem']}", "set OPTIQ_KERNELS=reference and report it")]
        times[name] = done
    error = times["native"]["error"]
    text = (
        f"4-bit {rows}x{columns} by one row: {times['native']['ms']:.2f} ms ({times['native']['gb_s']:.1f} GB/s), "
        f"{times['reference']['ms']:.0f} ms by definition"
    )
    if error > 1e-4:
        return [Check("4-bit speed", "fail", f"{text}, but wrong by {error:.1e}", "set OPTIQ_KERNELS=reference and report it")]
    return [Check("4-bit speed", "ok", text)]


def _speed() -> Check:
    """Float32 products with what `preload` chose, and with the bundled BLAS where that is another one."""
    from optiq.kernels.blas import preload

    rows, inner, columns = PROBE_SHAPE
    what = f"float32 {rows}x{inner}x{columns}"
    here = _probe({})
    if "problem" in here:
        return Check("speed", "fail", f"MLX does not compute: {here['problem']}", "reinstall mlx")
    text = f"{what}: {here['gflops']:.0f} GF/s on {here['device']}"
    if here["error"] > 1e-4:
        return Check("speed", "fail", f"{text}, but wrong by {here['error']:.1e}", "set OPTIQ_BLAS=none and report it")
    if preload().how == "none":
        return Check("speed", "ok", text)
    bundled = _probe({"OPTIQ_BLAS": "none"})
    text += f"; {bundled.get('gflops', 0.0):.1f} with MLX's bundled BLAS"
    if here["gflops"] < SLOW_RATIO * bundled.get("gflops", 0.0):
        return Check("speed", "warn", text, "the machine is busy, or the BLAS was not taken; run again")
    return Check("speed", "ok", text)


def _probe(environment: dict[str, str], code: str = _PROBE, shape: tuple[int, ...] = PROBE_SHAPE) -> dict[str, float]:
    """Run a measurement in a fresh interpreter; its numbers, or {"problem": text}."""
    command = [sys.executable, "-c", code, *map(str, (*shape, PROBE_REPEATS))]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"problem": (done.stderr.strip().splitlines() or ["no message"])[-1]}  # type: ignore[dict-item]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _disk() -> Check:
    from optiq.files import free_bytes, size_text

    free = free_bytes(".")
    low = free < LOW_DISK_BYTES
    advice = "a conversion needs the size of the result, and statistics beside it" if low else ""
    return Check("disk", "warn" if low else "ok", f"{size_text(free)} free in {os.getcwd()}", advice)


def _hub() -> Check:
    from huggingface_hub import constants, get_token

    state = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else constants.ENDPOINT
    token = "with a token" if get_token() else "without a token"
    return Check("hub", "ok", f"{state}, {token}, cache {constants.HF_HUB_CACHE}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
