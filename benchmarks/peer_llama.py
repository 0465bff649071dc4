"""llama.cpp as a peer: built from source with native flags, a GGUF twin of the random 0.8B checkpoint, its speed.

    python benchmarks/peer_llama.py [--threads N] [--repeats 5] [--prefill 128,512,4096] [--depths 0,4096,16384]

The sources are the ones inside the `llama-cpp-python` package (pip fetches it). Builds below `build/llama`; whatever is
there is not made again. Out: a table of tokens per second on stdout, samples in `build/llama/bench.json`. `cpu.py` takes
its peer's side from here.

Needs cmake, ninja and a C++ compiler; random_checkpoint.py and random_gguf.py of the shared tools.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
from memory import checkpoint

VERSION = "0.3.36"  # of llama-cpp-python; the figures are of this one
WORK = harness.BUILD / "llama"
PACKAGE = WORK / f"llama_cpp_python-{VERSION}"
SOURCES = PACKAGE / "vendor" / "llama.cpp"
MAKE = WORK / "make"
QUANTIZATIONS = ("Q4_K_M", "Q4_0")
LAYERS = 24
OFF = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_UI", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES")
FLAGS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *(f"-D{name}=OFF" for name in OFF))
WORKER = Path(__file__).with_name("llama_worker.cpp")
TARGETS = ("llama-bench", "llama-quantize", "llama-server")
# GCC before 13 tells its optimizer that `_tile_loadconfig` reads 8 bytes, so the rest of the configuration is never stored
# and AMX faults on its first use. An empty statement that uses the whole structure mends it; no other compiler minds.
MENDED, MEND = Path("ggml/src/ggml-cpu/amx/mmq.cpp"), ("_tile_loadconfig(&tc);", '__asm__ volatile("" : "+m"(tc)); ')


def sources() -> Path:
    """llama.cpp's sources, unpacked on first use."""
    if SOURCES.exists():
        return SOURCES
    archive = WORK / f"{PACKAGE.name}.tar.gz"
    if not archive.exists():
        words = ["--no-deps", "--no-binary", "llama-cpp-python", "--dest", WORK, f"llama-cpp-python=={VERSION}"]
        harness.run([sys.executable, "-m", "pip", "download", *words], WORK / "download.log")
    part = WORK / "unpacked.partial"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as file:
        file.extractall(part, filter="data")
    mended = part / SOURCES.relative_to(WORK) / MENDED
    call, statement = MEND
    mended.write_text(mended.read_text().replace(call, statement + call))
    (part / PACKAGE.name).rename(PACKAGE)
    part.rmdir()
    return SOURCES


def program(name: str, jobs: int | None = None) -> Path:
    """One of llama.cpp's programs, built on first use (about 10 minutes on two cores)."""
    path = MAKE / "bin" / name
    if path.exists():
        return path
    for word in ("cmake", "ninja"):
        if not shutil.which(word):
            raise SystemExit(f"{word}: not found; install it (pip install cmake ninja) to build llama.cpp")
    harness.run(["cmake", "-G", "Ninja", "-S", sources(), "-B", MAKE, *FLAGS], WORK / "configure.log")
    words = ["cmake", "--build", MAKE, "--parallel", jobs or os.cpu_count(), "--target", *TARGETS]
    harness.run(words, WORK / "make.log")
    return path


def model(quantization: str) -> Path:
    """The random checkpoint as a quantized GGUF, made on first use."""
    out, whole = WORK / f"random-0.8B-{quantization}.gguf", WORK / "random-0.8B-F16.gguf"
    if out.exists():
        return out
    part = WORK / "random.gguf.partial"
    if not whole.exists():
        tool, vocabulary = harness.SHARED / "tools" / "random_gguf.py", sources() / "models" / "ggml-vocab-qwen35.gguf"
        path = os.pathsep.join(map(str, [sources() / "gguf-py", harness.ROOT / "src"]))
        words = [sys.executable, tool, checkpoint(LAYERS), vocabulary, part]
        harness.run(words, WORK / "gguf.log", PYTHONPATH=path)
        part.rename(whole)
    harness.run([program("llama-quantize"), whole, part, quantization], WORK / f"quantize-{quantization}.log")
    part.rename(out)
    return out


def tensor_bytes(quantization: str) -> int:
    """Bytes of all tensors of the GGUF: what a decoded token reads (the head is the embedding table, and stored once)."""
    sys.path.insert(0, str(sources() / "gguf-py"))
    from gguf import GGUFReader

    return int(sum(tensor.n_bytes for tensor in GGUFReader(str(model(quantization))).tensors))


def bench(quantization: str, threads: int, repeats: int, *, prompt: int = 0, new: int = 0, depth: int = 0) -> list[float]:
    """Tokens per second of each repetition of llama-bench, which runs once before to warm up.

    Args:
        prompt, new: tokens to read at once, tokens to generate one by one; exactly one of the two is not 0.
        depth: tokens in the cache beforehand.
    """
    words = [program("llama-bench"), "-m", model(quantization), "-t", threads, "-r", repeats, "-o", "json"]
    words += ["-p", prompt, "-n", new, "-d", depth]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\nexited with {done.returncode}:\n{done.stderr[-2000:]}")
    (row,) = json.loads(done.stdout)
    return [float(value) for value in row["samples_ts"]]


def worker(quantization: str, threads: int, types: Sequence[str] = ()) -> list[object]:
    """The command of `llama_worker.cpp`, compiled on first use: a side that waits while others are measured.

    Args:
        types: of cached keys and values, for instance q4_0; they turn flash attention on.
    """
    out = WORK / "llama_worker"
    if not out.exists() or out.stat().st_mtime < WORKER.stat().st_mtime:
        libraries = program("llama-bench").parent
        words: list[object] = [os.environ.get("CXX") or "c++", "-O2", "-std=c++17", WORKER, "-o", out]
        words += [f"-I{sources() / part}" for part in ("include", "ggml/include", "vendor")]
        words += [
            f"-L{libraries}",
            f"-Wl,-rpath,{libraries}",
            *(f"-l{name}" for name in ("llama", "ggml", "ggml-base", "ggml-cpu")),
        ]
        harness.run(words, WORK / "worker.log")
    return [out, model(quantization), threads, *types]


def description() -> dict[str, Any]:
    """Version, flags and compiled-in processor features."""
    make = (MAKE / "CMakeCache.txt").read_text()
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", make, re.M)
    about = subprocess.run([compiler[1], "--version"], capture_output=True, text=True).stdout if compiler else ""
    cmake = (SOURCES / "CMakeLists.txt").read_text()
    version = re.findall(r"set\(LLAMA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)\)", cmake)
    return {
        "package": f"llama-cpp-python {VERSION}",
        "llama_cpp": ".".join(version),
        "flags": FLAGS,
        "compiler": about.splitlines()[0] if about else None,
        "features": features(),
        "bytes": {name: tensor_bytes(name) for name in QUANTIZATIONS},
    }


def features() -> list[str]:
    """What the CPU backend says that it was compiled with."""
    library = ctypes.CDLL(str(MAKE / "bin" / "libllama.so"))
    library.llama_print_system_info.restype = ctypes.c_char_p
    text = library.llama_print_system_info().decode()
    return re.findall(r"(\w+) = 1\b", text)


def main() -> None:
    """Measure both quantizations and print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prefill", default="128,512,4096")
    parser.add_argument("--depths", default="0,4096,16384")
    parser.add_argument("--jobs", type=int, help="compilers at once (default: the cores)")
    args = parser.parse_args()
    program(TARGETS[-1], args.jobs)
    rows: list[dict[str, Any]] = []
    cases = [{"prompt": int(n)} for n in args.prefill.split(",") if n] + [
        {"new": 32, "depth": int(n)} for n in args.depths.split(",") if n
    ]
    for case in cases:
        for name in QUANTIZATIONS:
            samples = bench(name, args.threads, args.repeats, **case)
            rows.append({"quantization": name, **case, "tokens_per_s": samples, "median": statistics.median(samples)})
            print(f"{name:7} {case}  {statistics.median(samples):8.2f} tok/s  of {len(samples)}", flush=True)
    result = {"machine": harness.machine(), "threads": args.threads, "llama": description(), "rows": rows}
    (WORK / "bench.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
