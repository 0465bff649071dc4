"""The processes that `cpu.py` compares: workers that answer JSON lines, torch's environment, the model, the bandwidth.

In: requests. Out: their replies. Knows nothing of bars. A worker waits on its input while others are measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
from memory import checkpoint

WORK = harness.BUILD / "cpu"
WORKER = Path(__file__).with_name("cpu_worker.py")
TORCH, TORCH_ENVIRONMENT = Path(__file__).with_name("peer_torch.py"), harness.BUILD / "torch-env"
TORCH_PACKAGES = ("torch==2.13.0", "transformers>=5", "numpy")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # the wheels without CUDA
BANDWIDTH, BANDWIDTH_FLAGS = Path(__file__).with_name("bandwidth.c"), ("-O3", "-march=native", "-mprefer-vector-width=512")
BANDWIDTH_GB = 1.5  # three times the weights of the model, beyond what a cache that other machines share may keep
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16")
LAYERS = 24


class Worker:
    """A child process that answers one JSON line with another."""

    def __init__(self, side: str, threads: int, command: Sequence[object] | None = None) -> None:
        """Start `cpu_worker.py SIDE`, or another command that speaks the same way; its stderr is in `build/cpu/SIDE.log`."""
        WORK.mkdir(parents=True, exist_ok=True)
        self._log = WORK / f"{side}.log"
        variables = harness.environment(OPTIQ_THREADS=str(threads))
        if side != "ours":  # nothing of ours is on the path of another side
            variables.pop("PYTHONPATH")
        with self._log.open("wb") as log:
            words = [str(word) for word in command or (sys.executable, WORKER, side)]
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=log, text=True, env=variables, cwd=harness.ROOT)

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the reply.

        Raises:
            SystemExit: the worker ended, with the end of its log.
        """
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = self._log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"{self._log.stem} ended with {self._child.wait()} at {do} {request}; end of {self._log}:\n{tail}")
        return dict(json.loads(line))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.stdin:
            self._child.stdin.close()
        self._child.wait()
        if self._child.stdout:
            self._child.stdout.close()


def torch_worker(model: Path, ids: Path, threads: int) -> Worker:
    """The other framework: `peer_torch.py` under torch's own Python."""
    return Worker("torch", threads, [torch_python(), TORCH, model, ids, threads])


def torch_python() -> Path:
    """OPTIQ_TORCH_PYTHON, or the interpreter of an environment that is made on first use."""
    if given := os.environ.get("OPTIQ_TORCH_PYTHON"):
        return Path(given)
    python = TORCH_ENVIRONMENT / "bin" / "python"
    if not python.exists():
        part = TORCH_ENVIRONMENT.with_suffix(".partial")
        shutil.rmtree(part, ignore_errors=True)
        venv.create(part, with_pip=True)
        words = [part / "bin" / "python", "-m", "pip", "install", "--quiet", "--extra-index-url", TORCH_INDEX, *TORCH_PACKAGES]
        harness.run(words, WORK / "torch-env.log")
        part.rename(TORCH_ENVIRONMENT)
    return python


def uniform4() -> Path:
    """The random checkpoint at 4 bits, groups of 64, as `mlx_lm convert` writes it; made on first use."""
    out, part = WORK / "uniform4", WORK / "uniform4.partial"
    if not out.exists():
        shutil.rmtree(part, ignore_errors=True)
        words = [sys.executable, "-m", "mlx_lm", "convert", "-q", "--q-bits", 4, "--q-group-size", 64]
        harness.run([*words, "--hf-path", checkpoint(LAYERS), "--mlx-path", part], WORK / "uniform4.log")
        part.rename(out)
    return out


def bandwidth(threads: int, repeats: int) -> list[float]:
    """GB/s of reading a buffer of `BANDWIDTH_GB` with all threads, by `bandwidth.c` (a stream of 64-byte loads)."""
    program = WORK / "bandwidth"
    if not program.exists() or program.stat().st_mtime < BANDWIDTH.stat().st_mtime:
        WORK.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC") or "cc"
        harness.run([compiler, *BANDWIDTH_FLAGS, "-pthread", BANDWIDTH, "-o", program], WORK / "bandwidth.log")
    words = [str(program), str(threads), str(BANDWIDTH_GB), str(repeats + 1)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()][1:]  # the first reading warms up


def processor_features() -> list[str]:
    """The vector and matrix extensions of this processor that decide speed here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return [name for name in FEATURES if name in flags]
