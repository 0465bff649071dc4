"""The engine under load: many streams (beside llama.cpp's server), a long prompt beside a stream, a second turn, random cancels.

Parts of `engine.py`.

In: the quantized random checkpoint of the 0.8B shapes; for cancels the embedded model. Out: seconds, and the bars made of them.
Sides take turns; medians.
"""

from __future__ import annotations

import contextlib
import random
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optiq  # isort: skip  # before MLX, which it gives a fast BLAS

import peer_llama
from harness import Bar
from llama_server import LlamaServer

from optiq.generate.sampling import Sampling
from optiq.serve.engine import Engine, EngineOptions
from optiq.serve.request import Event, Finished, Request, Token
from optiq.serve.scheduler import Policy

STREAMS, PROMPT, NEW = 8, 128, 256  # a short question and an answer
WARM = 16  # new tokens of the round that warms up
LONG, CONTEXT, TURN = 4096, 8192, 100
ROUNDS = 7  # of the slower measurements
REQUESTS = 1000
MEMORY_BYTES = 6 * 10**9


def engine(model_dir: Path, **options: Any) -> Engine:
    """An engine with the model loaded."""
    return Engine(*optiq.load(str(model_dir)), EngineOptions(memory_bytes=MEMORY_BYTES, **options))


def prompt(length: int, seed: int) -> tuple[int, ...]:
    """Random token ids."""
    return tuple(random.Random(seed).choices(range(1000, 4000), k=length))


def timed(target: Engine) -> list[tuple[float, Event]]:
    """All events until nothing is left to do, each with its time."""
    found = []
    while not target.idle:
        events = target.step()
        now = time.perf_counter()
        found += [(now, event) for event in events]
    return found


def streams(model_dir: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Tokens per second of one stream, of many that start together, and of llama.cpp's server with as many; reading included."""
    found: dict[str, Any] = {"one": [], "many": [], "llama": {name: [] for name in peer_llama.QUANTIZATIONS}}
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(LlamaServer(name, threads, STREAMS, PROMPT + NEW)) for name in peer_llama.QUANTIZATIONS]
        target = engine(model_dir, prefix_bytes=0)
        for repeat in range(repeats + 1):
            prompts = [prompt(PROMPT, 100 * repeat + n) for n in range(STREAMS)]
            new = NEW if repeat else WARM
            took = {peer.quantization: peer.run(prompts, new) for peer in peers}
            many, one = (_replies(target, asked, new) for asked in (prompts, prompts[:1]))
            if repeat:
                found["one"].append(NEW / one)
                found["many"].append(STREAMS * NEW / many)
                for name, seconds in took.items():
                    found["llama"][name].append(STREAMS * NEW / seconds)
    return {"streams": STREAMS, "prompt": PROMPT, "new": NEW, "llama": peer_llama.description(), "tokens_per_s": found}


def _replies(target: Engine, prompts: Sequence[tuple[int, ...]], new: int) -> float:
    """Seconds until every prompt, all submitted at once, has its reply of `new` tokens."""
    start = time.perf_counter()
    for ids in prompts:
        target.submit(Request(ids, max_tokens=new))
    timed(target)
    return time.perf_counter() - start


def streams_bars(part: dict[str, Any]) -> list[Bar]:
    """Many streams over one, and over llama.cpp's server."""
    rates = part["tokens_per_s"]
    one, many = (statistics.median(rates[name]) for name in ("one", "many"))
    each = f"{part['prompt']} prompt and {part['new']} new tokens each, reading included"
    best = max(rates["llama"], key=lambda name: statistics.median(rates["llama"][name]))
    theirs = statistics.median(rates["llama"][best])
    return [
        Bar(
            "4.streams",
            f"tokens per second of {part['streams']} streams over one; {each}",
            many / one,
            "x",
            3.0,
            ">=",
            f"one stream {one:.1f} tok/s; {part['streams']}: {many:.1f}",
        ),
        Bar(
            "4.streams_over_llama",
            f"tokens per second of {part['streams']} streams over llama.cpp's server with as many; {each}",
            many / theirs,
            "x",
            1.0,
            ">=",
            f"llama-server {best} {theirs:.1f} tok/s; ours {many:.1f}",
        ),
    ]


def gaps(model_dir: Path) -> dict[str, Any]:
    """Gaps between a stream's tokens alone and while a long prompt is read, and that prompt's time alone and beside it."""
    found: dict[str, list[float]] = {"gap_alone": [], "gap_beside": [], "read_alone": [], "read_beside": []}
    target = engine(model_dir, prefix_bytes=0)
    for repeat in range(ROUNDS):
        long = Request(prompt(LONG, repeat), max_tokens=1)
        found["read_alone"].append(_until_token(target, target.submit(long)))
        stream = target.submit(Request(prompt(PROMPT, 50 + repeat), max_tokens=10**4))
        found["gap_alone"].append(_p95(_gaps(target, stream, lambda tokens: tokens < 60)))
        beside = target.submit(Request(prompt(LONG, 20 + repeat), max_tokens=1))
        start = time.perf_counter()
        found["gap_beside"].append(_p95(_gaps(target, stream, lambda _, beside=beside: beside in target._jobs)))
        found["read_beside"].append(time.perf_counter() - start)
        target.cancel(stream)
        target.run()
    return {"long": LONG, **found}


def gaps_bars(part: dict[str, Any]) -> list[Bar]:
    """Both ratios."""
    middle = {name: statistics.median(part[name]) for name in ("gap_alone", "gap_beside", "read_alone", "read_beside")}
    beside = f"while {part['long']} tokens are read"
    return [
        Bar(
            "4.gap",
            f"95th percentile of a stream's gaps between tokens {beside}, over that alone",
            middle["gap_beside"] / middle["gap_alone"],
            "x",
            3.0,
            "<=",
            f"alone {1e3 * middle['gap_alone']:.1f} ms; beside {1e3 * middle['gap_beside']:.1f} ms",
        ),
        Bar(
            "4.read_beside",
            f"time of a prompt of {part['long']} tokens beside a stream, over that alone",
            middle["read_beside"] / middle["read_alone"],
            "x",
            1.6,
            "<=",
            f"alone {middle['read_alone']:.2f} s; beside {middle['read_beside']:.2f} s",
        ),
    ]


def turns(model_dir: Path) -> dict[str, Any]:
    """Time to the first token of a first and a second turn of a long conversation."""
    target = engine(model_dir)
    found: dict[str, Any] = {"context": CONTEXT, "new": TURN, "first_s": [], "second_s": [], "read": []}
    for repeat in range(ROUNDS):
        first = prompt(CONTEXT, repeat)
        found["first_s"].append(_until_token(target, target.submit(Request(first, max_tokens=2))))
        target.run()
        second = Request((*first, *prompt(TURN, 70 + repeat)), max_tokens=2)
        found["second_s"].append(_until_token(target, target.submit(second)))
        (end,) = [event for event in target.run() if isinstance(event, Finished)]
        found["read"].append(end.usage.prompt_tokens - end.usage.cached_tokens)
    return found


def turns_bars(part: dict[str, Any]) -> list[Bar]:
    """Time and tokens of turn two."""
    first, second = statistics.median(part["first_s"]), statistics.median(part["second_s"])
    return [
        Bar(
            "4.turn_two_time",
            f"time to the first token of turn two over turn one's, {part['context']} tokens and {part['new']} new ones",
            second / first,
            "x",
            0.1,
            "<=",
            f"turn one {first:.2f} s; turn two {second:.3f} s",
        ),
        Bar(
            "4.turn_two_tokens",
            "tokens that turn two reads",
            float(max(part["read"])),
            "tokens",
            float(part["new"] + 64),
            "<=",
            f"{part['new']} new tokens and a chunk of the grid of 64",
        ),
    ]


def cancels(model_dir: Path) -> dict[str, Any]:
    """Random requests with random cancels: what is left, and how much the process has grown since the first quarter."""
    choose = random.Random(0)
    target = Engine(
        *optiq.load(str(model_dir)),
        EngineOptions(Policy(max_rows=8, max_waiting=REQUESTS), memory_bytes=10**8, prefix_bytes=10**7),
    )
    left, alive, ended, early = REQUESTS, [], 0, 0
    while left or not target.idle:
        if left and choose.random() < 0.6:
            length, sampled = choose.randrange(1, 400), choose.random() < 0.5
            sampling = Sampling(temperature=float(sampled), top_k=20, seed=left)
            alive.append(target.submit(Request(prompt(length, left % 50), sampling, max_tokens=choose.randrange(1, 40))))
            left -= 1
        if alive and choose.random() < 0.3:
            target.cancel(alive.pop(choose.randrange(len(alive))))
        ended += sum(isinstance(event, Finished) for event in target.step())
        if not early and ended >= REQUESTS // 4:
            early = resident_bytes()
    load = target.load()
    return {
        "requests": REQUESTS,
        "ended": ended,
        "cancelled": target.counters["finished_cancelled"],
        "failures": target.counters["failures"],
        "rows_left": load.waiting + load.reading + load.decoding,
        "cache_bytes_left": load.cache_bytes + sum(target.budget.promised.values()),
        "prefix_over_limit": max(0, load.prefix_bytes - target.prefix.limit_bytes),
        "resident_early": early,
        "resident_end": resident_bytes(),
    }


def cancels_bars(part: dict[str, Any]) -> list[Bar]:
    """Leaks and growth."""
    leaks = part["cache_bytes_left"] + part["prefix_over_limit"] + part["rows_left"] + part["failures"]
    leaks += abs(part["requests"] - part["ended"])
    what = f"{part['requests']} random requests, {part['cancelled']} cancelled"
    growth = part["resident_end"] / part["resident_early"] - 1
    early = f"{part['resident_early'] / 1e6:.0f} MB after a quarter"
    return [
        Bar("4.cancel_leaks", f"{what}: bytes, rows and requests that are left", float(leaks), "", 0.0, "<=", "nothing"),
        Bar(
            "4.cancel_growth", f"{what}: growth of the resident size since the first quarter", 100 * growth, "%", 5.0, "<=", early
        ),
    ]


def resident_bytes() -> int:
    """What the process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _until_token(target: Engine, name: str) -> float:
    """Seconds until a request's first token."""
    start = time.perf_counter()
    while not any(isinstance(event, Token | Finished) and event.request == name for event in target.step()):
        pass
    return time.perf_counter() - start


def _gaps(target: Engine, name: str, going: Any) -> list[float]:
    """Gaps between a request's tokens while `going(tokens so far)`."""
    times = []
    while going(len(times)):
        events = target.step()
        if any(isinstance(event, Token) and event.request == name for event in events):
            times.append(time.perf_counter())
        if not events and target.idle:
            break
    return [b - a for a, b in zip(times, times[1:], strict=False)]


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]
