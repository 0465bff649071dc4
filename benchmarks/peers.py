"""Build the quantized variants of the embedded model that other MLX quantizers make, each with its own code.

    python benchmarks/peers.py [--only GLOB] [--list] [--samples 24]

In:  `examples/tiny-qwen3.5`; 96 of our calibration documents for dynamic_quant (its own loader downloads a text);
     mlx-optiq reads the mix that it ships, in an environment of its own under `build/`, with mlx-lm 0.32.0: with
     0.32.1 and later it passes its plan in the wrong position and writes a uniform 4-bit model without saying so.
Out: `build/peers/<name>/`, loadable by stock mlx-lm, and `build/peers/<name>.json`: command, versions, time, the hash
     of the source. A peer that is there and was built from the same source by the same arguments is not built again.

Where a method runs the model it runs on a float32 copy (the same values; float32 products are the one fast format of
MLX on a CPU) and what it stores is bfloat16, as it would store itself.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import shutil
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness

PEERS = harness.BUILD / "peers"
WORK = PEERS / "work"
SOURCES = harness.ROOT / "src"
OPTIQ_ENVIRONMENT = harness.BUILD / "mlx-optiq-env"
OPTIQ_PACKAGES = ("mlx-optiq==0.7.7", "mlx-lm==0.32.0")
DYNAMIC = Path(__file__).with_name("peer_dynamic.py")


@dataclass(frozen=True)
class Peer:
    """One arm: its directory's name, its slug in the ids of bars, how it is described, and how it is built."""

    name: str
    slug: str
    what: str
    build: Callable[[Path, Path], None]  # (output directory, log)
    text: str = ""  # hash of the calibration text where ours goes in


def fast_products(*folders: Path) -> dict[str, str]:
    """The PYTHONPATH of a peer's process: a `sitecustomize` that puts a fast BLAS in place, then the given folders.

    The wheels of MLX for Linux bring a slow BLAS; this changes a peer's speed, not its method.
    """
    from optiq.kernels import blas

    choice = blas.preload()
    lines = ["import ctypes", ""]
    if choice.how == "wheel":
        lines += [
            f"connect = ctypes.CDLL({str(blas.shim_path())!r}).optiq_blas_connect",
            "connect.restype, connect.argtypes = ctypes.c_char_p, (ctypes.c_char_p, ctypes.c_char_p)",
            f"connect({choice.path!r}.encode(), b'scipy_')",
            f"ctypes.CDLL({str(blas.shim_path())!r}, mode=ctypes.RTLD_GLOBAL)",
        ]
    elif choice.path:
        lines.append(f"ctypes.CDLL({choice.path!r}, mode=ctypes.RTLD_GLOBAL)")
    folder = WORK / "blas"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    path = os.pathsep.join(map(str, [folder, *folders]))
    return {"PYTHONPATH": path, "OPTIQ_BLAS": "none"}  # ours has nothing left to do there


def uniform(bits: int, group_size: int) -> Callable[[Path, Path], None]:
    """`mlx_lm convert -q` with one width everywhere."""
    return _convert("--q-bits", bits, "--q-group-size", group_size)


def mixed(recipe: str) -> Callable[[Path, Path], None]:
    """`mlx_lm convert` with one of its mixed recipes."""
    return _convert("--quant-predicate", recipe, "--q-group-size", 64)


def _convert(*options: object) -> Callable[[Path, Path], None]:
    def build(out: Path, log: Path) -> None:
        words = [sys.executable, "-m", "mlx_lm", "convert", "-q", "--hf-path", harness.MODEL, "--mlx-path", out]
        harness.run([*words, *options], log)

    return build


def dynamic(low: int, high: int, target: float) -> Callable[[Path, Path], None]:
    """mlx-lm's dynamic_quant: its sensitivities on our tokens (kept for each pair of widths), its own choice."""

    def build(out: Path, log: Path) -> None:
        sensitivities = WORK / f"dynamic-{low}-{high}-{calibration_digest()[:12]}.json"
        words = [sys.executable, DYNAMIC, harness.MODEL, float32_copy(), out, sensitivities, low, high, target]
        harness.run(["nice", *words], log, **fast_products(SOURCES))

    return build


def calibration_digest() -> str:
    """SHA-256 of our calibration text."""
    return harness.digest([SOURCES / "optiq" / "measure" / "text" / "calibration.jsonl"])


def mlx_optiq(target: float, bits: str, samples: int) -> Callable[[Path, Path], None]:
    """`optiq convert` of mlx-optiq 0.7.7 with its own calibration mix."""

    def build(out: Path, log: Path) -> None:
        scratch = WORK / "mlx-optiq"
        command = optiq_environment() / "bin" / "optiq"
        options = ["--target-bpw", target, "--candidate-bits", bits, "--n-calibration", samples, "--skip-baselines"]
        words = [command, "convert", float32_copy(), *options, "-o", scratch]
        harness.run(["nice", *words], log, **fast_products())
        check_mixed(scratch / "optiq_mixed")
        shutil.copytree(scratch / "optiq_mixed", out)

    return build


def check_mixed(model_dir: Path) -> None:
    """Refuse the uniform model that mlx-optiq writes with an mlx-lm that it does not fit."""
    widths = {entry["bits"] for entry in overrides(model_dir).values()}
    default = json.loads((model_dir / "config.json").read_text())["quantization"]["bits"]
    if not widths - {default}:
        raise SystemExit(f"{model_dir}: only {default}-bit layers; mlx-optiq needs {OPTIQ_PACKAGES[1]}")


def overrides(model_dir: Path) -> dict[str, dict[str, int]]:
    """The layers of `config.json` whose quantization differs from the default."""
    quantization = json.loads((model_dir / "config.json").read_text())["quantization"]
    return {name: entry for name, entry in quantization.items() if isinstance(entry, dict)}


def optiq_environment() -> Path:
    """The virtual environment of mlx-optiq, made on first use."""
    if not (OPTIQ_ENVIRONMENT / "bin" / "optiq").exists():
        print(f"making {OPTIQ_ENVIRONMENT} ({', '.join(OPTIQ_PACKAGES)})", flush=True)
        venv.create(OPTIQ_ENVIRONMENT, with_pip=True, clear=True)
        backend = [f"mlx-cpu=={harness.version('mlx')}"] if platform.system() == "Linux" else []
        packages = [*OPTIQ_PACKAGES, f"mlx=={harness.version('mlx')}", *backend]
        words = [OPTIQ_ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "-q", *packages]
        harness.run(words, WORK / "mlx-optiq-env.log", PYTHONPATH="")
    return OPTIQ_ENVIRONMENT


def float32_copy() -> Path:
    """The embedded model with every tensor stored in float32 (the configuration unchanged)."""
    out = WORK / "float32"
    if not out.exists():
        harness.run([sys.executable, DYNAMIC, "--float32", harness.MODEL, out], WORK / "float32.log")
    return out


def peers(samples: int = 24) -> list[Peer]:
    """Every arm, in the order of the tables."""
    rows = [
        Peer(f"uniform-{b}bit-g{g}", slug, f"mlx_lm convert, {b} bits, g{g}", uniform(b, g))
        for b, g, slug in [
            (3, 64, "uniform3"),
            (4, 64, "uniform4"),
            (4, 32, "uniform4_g32"),
            (5, 64, "uniform5"),
            (6, 64, "uniform6"),
        ]
    ]
    recipes = ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]
    rows += [Peer(recipe, recipe, f"mlx_lm convert, {recipe}", mixed(recipe)) for recipe in recipes]
    for low, high, target in [(3, 6, 4.0), (4, 8, 5.0), (4, 8, 6.0)]:
        name, slug = f"dynamic-{low}-{high}-at-{target:g}", f"dynamic{low}{high}_at{target:g}"
        what = f"mlx_lm dynamic_quant, {low} and {high} bits, target {target:g}"
        rows.append(Peer(name, slug, what, dynamic(low, high, target), calibration_digest()))
    what = f"mlx-optiq 0.7.7, 4 and 8 bits, target 5.0, {samples} samples"
    rows.append(Peer("mlx-optiq-4-8-at-5", "mlx_optiq", what, mlx_optiq(5.0, "4,8", samples)))
    return rows


def ready(peer: Peer, source: str) -> bool:
    """Whether the arm exists and was built from this source and description."""
    record = PEERS / f"{peer.name}.json"
    if not (PEERS / peer.name / "config.json").exists() or not record.exists():
        return False
    built = json.loads(record.read_text())
    return (built["source"], built["what"], built["text"]) == (source, peer.what, peer.text)


def build(peer: Peer, source: str) -> None:
    """Build one arm under a partial name, then move it to its place with its record."""
    part = WORK / f"{peer.name}.partial"
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(PEERS / peer.name, ignore_errors=True)
    log = PEERS / "logs" / f"{peer.name}.log"
    start = harness.time.perf_counter()
    peer.build(part, log)
    part.rename(PEERS / peer.name)
    record = {
        "what": peer.what,
        "source": source,
        "text": peer.text,
        "seconds": round(harness.time.perf_counter() - start, 1),
        "mlx": harness.version("mlx"),
        "mlx_lm": "0.32.0" if peer.slug == "mlx_optiq" else harness.version("mlx-lm"),
    }
    (PEERS / f"{peer.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{peer.name:24} {record['seconds']:8.1f} s", flush=True)


def ensure(only: str = "*", samples: int = 24) -> list[Peer]:
    """Build what is missing and return the arms that match a glob."""
    WORK.mkdir(parents=True, exist_ok=True)
    source = harness.model_digest(harness.MODEL)
    chosen = [peer for peer in peers(samples) if fnmatch.fnmatch(peer.name, only)]
    for peer in chosen:
        if not ready(peer, source):
            build(peer, source)
    return chosen


def main() -> None:
    """Build the arms from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="names to build, a glob")
    parser.add_argument("--samples", type=int, default=24, help="mlx-optiq's --n-calibration (its default: 24)")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    args = parser.parse_args()
    if args.list:
        print(*(f"{peer.name:24} {peer.what}" for peer in peers(args.samples)), sep="\n")
        return
    ensure(args.only, args.samples)


if __name__ == "__main__":
    main()
