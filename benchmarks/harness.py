"""What every benchmark shares: bars, result files, the machine's description, timed child processes.

Knows nothing of a model or of MLX (a parent that stays small is what makes a child's peak memory readable).
In: bars that a benchmark measured. Out: `benchmarks/results/<script>.json`, schema 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import optiq  # before MLX, which it gives a fast BLAS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "benchmarks" / "pictures"
BUILD = ROOT / "build"
MODEL = ROOT / "examples" / "tiny-qwen3.5"
SHARED = Path(os.environ.get("OPTIQ_SHARED", ROOT.parent / "shared"))
SCHEMA = 1


@dataclass(frozen=True)
class Bar:
    """One requirement and what was measured for it; `interval` (95 %) is what has to pass where there is one."""

    id: str
    what: str
    figure: float | None
    unit: str
    bar: float
    direction: str  # "<=" or ">="
    baseline: str
    interval: tuple[float, float] | None = None

    @property
    def met(self) -> bool:
        """Whether the figure, or the unfavourable end of its interval, is within the bar; false if not measured."""
        if self.figure is None:
            return False
        if self.direction == "<=":
            return max(self.interval or (self.figure,)) <= self.bar
        return min(self.interval or (self.figure,)) >= self.bar


@dataclass(frozen=True)
class Run:
    """What one child process did: its exit code (negative: the signal), wall time, peak resident bytes, last output."""

    code: int
    seconds: float
    peak_bytes: int
    tail: str


def machine() -> dict[str, Any]:
    """The processor's name, its logical cores, memory in bytes, and the versions that decide speed."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "optiq": optiq.__version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except FileNotFoundError:
        pass
    return platform.processor() or platform.machine()


def version(package: str) -> str:
    """The installed version of a distribution, or "absent"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def commit() -> str:
    """The checked-out commit; "+" is appended where the sources differ from it, "none" stands for no commit."""
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode:
        return "none"
    paths = ["src", "native", "examples", "pyproject.toml"]
    changed = subprocess.run(["git", "status", "--porcelain", "--", *paths], cwd=ROOT, capture_output=True, text=True)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def write_result(script: str, bars: Sequence[Bar], raw: Mapping[str, Any]) -> Path:
    """Write `results/<script>.json` (atomically) and print its rows."""
    rows = [asdict(bar) | {"met": bar.met} for bar in bars]
    result = {
        "schema": SCHEMA,
        "commit": commit(),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "bars": rows,
        "raw": raw,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{script}.json"
    part = path.with_suffix(".partial")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)
    print(table(rows))
    return path


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Every committed result by script name, in the order of the names."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    for name, result in results.items():
        if result.get("schema") != SCHEMA:
            raise SystemExit(f"{folder / name}.json: schema {result.get('schema')}, expected {SCHEMA}; run it again")
    return results


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of bars as aligned text: id, figure with interval, bar, whether met, what, baseline."""
    lines = [("", "id", "figure", "95 %", "bar", "what", "baseline")]
    for row in rows:
        span = row.get("interval")
        lines.append(
            (
                "met" if row["met"] else "NOT MET",
                row["id"],
                f"{number(row['figure'])} {row['unit']}".rstrip(),
                f"{number(span[0])} to {number(span[1])}" if span else "",
                f"{row['direction']} {number(row['bar'])}",
                row["what"],
                row["baseline"],
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def number(value: float | None) -> str:
    """A figure with four significant digits, integers in full, "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 100 else f"{value:.4g}"


def command(*words: object) -> list[str]:
    """The command line of `optiq WORDS…` under this interpreter."""
    return [sys.executable, "-m", "optiq.cli", *map(str, words)]


def environment(**extra: str) -> dict[str, str]:
    """The child's environment: ours, the sources on the path, no network."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"} | extra


def run(command: Sequence[object], log: Path, check: bool = True, **variables: str) -> Run:
    """Run a child to its end, its output in `log`; the peak is its own and its waited-for children's.

    Raises:
        SystemExit: with the end of the log, if `check` and the exit code is not 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with log.open("wb") as output:
        child = subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, env=environment(**variables), stdout=output, stderr=output
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    scale = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux (getrusage(2))
    tail = log.read_text(errors="replace")[-2000:]
    done = Run(child.returncode, time.perf_counter() - start, usage.ru_maxrss * scale, tail)
    if check and done.code:
        raise SystemExit(f"{' '.join(map(str, command))}\nexited with {done.code}; end of {log}:\n{tail}")
    return done


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and the contents of files, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def model_digest(model_dir: Path) -> str:
    """SHA-256 of what decides a model's logits: its configuration and its weights."""
    return digest([model_dir / "config.json", *model_dir.glob("model*.safetensors")])


def tree_digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
