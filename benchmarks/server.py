"""The server: many clients for minutes, what HTTP costs, an engine that is killed again and again.

    python benchmarks/server.py [--only load,overhead,kills] [--seconds 120] [--clients 200] [--repeats 5] [--kills 100]

Parts are kept below `build/server` with their commit, so that `--only` renews one part. Give the machine nothing else to do.
Out: `results/server.json` where all parts are there; with `--dry` the rows are printed and nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import time
from collections import Counter
from typing import Any

import engine_load
import harness
import parts
from cpu_sides import uniform4
from harness import Bar
from server_clients import Reply, Running, complete, server, until_ready

from optiq.serve.request import Request

QUEUE = 256
PROMPTS, PROMPT, NEW = 32, 24, 24  # of the load: different prompts, their length, tokens of a reply
KILL_CLIENTS, KILL_NEW, HUNG_S = 16, 200, 60.0
BACK_S = 10.0  # beyond loading


def prompt(length: int, seed: int) -> list[int]:
    """Random token ids that the embedded model's tokenizer has."""
    return random.Random(seed).choices(range(100, 2000), k=length)


def load(settings: argparse.Namespace) -> dict[str, Any]:
    """Clients that ask again and again; every reply is compared with the one that its prompt has alone."""
    with server(harness.MODEL, "--max-queue", QUEUE, "--memory-gb", 1, "--prefix-gb", 0.02) as running:
        return asyncio.run(_load(running, settings.clients, settings.seconds))


async def _load(running: Running, clients: int, seconds: float) -> dict[str, Any]:
    prompts = [prompt(PROMPT, seed) for seed in range(PROMPTS)]
    alone = [(await complete(running.port, one, NEW)).text for one in prompts]
    if len(set(alone)) < PROMPTS // 2:
        raise SystemExit("the prompts have the same replies, so crossed ones could not be seen; choose others")
    ends: Counter[str] = Counter()
    times: list[float] = []
    stop = time.perf_counter() + seconds

    async def client(number: int) -> None:
        draw = random.Random(number)
        while time.perf_counter() < stop:
            which = draw.randrange(PROMPTS)
            reply = await complete(running.port, prompts[which], NEW, limit_s=300)
            ends["crossed" if reply.end == "done" and reply.text != alone[which] else reply.end] += 1
            times.append(reply.seconds)

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    resident = []
    while time.perf_counter() < stop:
        resident.append(running.resident())
        await asyncio.sleep(min(1.0, seconds / 20))
    await asyncio.gather(*tasks)
    return {"clients": clients, "seconds": seconds, "ends": dict(ends), "resident": resident, "seconds_each": _spread(times)}


def load_bars(part: dict[str, Any]) -> list[Bar]:
    """Nothing lost, nothing crossed, no growth."""
    ends, resident = part["ends"], part["resident"]
    done, all_of_them = ends.get("done", 0), sum(ends.values())
    quarter = len(resident) // 4
    before, after = statistics.median(resident[quarter : 2 * quarter]), statistics.median(resident[-quarter:])
    what = f"{part['clients']} streaming clients for {part['seconds']:g} s, queue of {QUEUE}, embedded model"
    told = f"{all_of_them} requests, median {part['seconds_each']['median']:.2f} s"
    return [
        Bar("5.load_lost", f"replies lost, cut or crossed; {what}", all_of_them - done, "replies", 0, "<=", told),
        Bar(
            "5.load_growth",
            "resident size of server and engine in the last quarter over the second one; the same load",
            100 * (after / before - 1),
            "%",
            5.0,
            "<=",
            f"{before / 1e6:.0f} MB in the second quarter",
        ),
    ]


def overhead(settings: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of eight streams: the engine in this process, and over HTTP; in turns."""
    model = uniform4()
    target = engine_load.engine(model, prefix_bytes=0)
    found: dict[str, list[float]] = {"engine": [], "http": []}
    with server(model, "--prefix-gb", 0, "--memory-gb", 6) as running:
        for repeat in range(settings.repeats + 1):
            prompts = [engine_load.prompt(engine_load.PROMPT, 100 * repeat + n) for n in range(engine_load.STREAMS)]
            start = time.perf_counter()
            for one in prompts:
                target.submit(Request(one, max_tokens=engine_load.NEW))
            tokens = sum(event.usage.tokens for _, event in engine_load.timed(target) if hasattr(event, "usage"))
            own = tokens / (time.perf_counter() - start)
            start = time.perf_counter()
            replies = asyncio.run(_all(running.port, prompts))
            over = sum(reply.tokens for reply in replies) / (time.perf_counter() - start)
            if any(reply.end != "done" for reply in replies):
                raise SystemExit(f"a stream did not end well: {[reply.end for reply in replies]}")
            if repeat:  # the first warms up
                found["engine"].append(own)
                found["http"].append(over)
    return {"streams": engine_load.STREAMS, "prompt": engine_load.PROMPT, "new": engine_load.NEW, "tokens_per_s": found}


async def _all(port: int, prompts: list[tuple[int, ...]]) -> list[Reply]:
    return await asyncio.gather(*(complete(port, one, engine_load.NEW) for one in prompts))


def overhead_bars(part: dict[str, Any]) -> list[Bar]:
    """What HTTP costs."""
    own, over = (statistics.median(part["tokens_per_s"][side]) for side in ("engine", "http"))
    what = f"tokens per second lost over HTTP, {part['streams']} streams, 0.8B shapes at 4 bits"
    baseline = f"the engine alone {own:.1f} tok/s; over HTTP {over:.1f}"
    return [Bar("5.overhead", what, 100 * (1 - over / own), "%", 5.0, "<=", baseline)]


def kills(settings: argparse.Namespace) -> dict[str, Any]:
    """The engine is killed at random moments while clients stream."""
    with server(harness.MODEL, "--memory-gb", 1) as running:
        return asyncio.run(_kills(running, settings.kills))


async def _kills(running: Running, count: int) -> dict[str, Any]:
    ends: Counter[str] = Counter()
    over = asyncio.Event()

    async def client(number: int) -> None:
        while not over.is_set():
            reply = await complete(running.port, prompt(PROMPT, number), KILL_NEW, HUNG_S)
            ends[reply.end] += 1
            if reply.end != "done":
                await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(client(number)) for number in range(KILL_CLIENTS)]
    draw, back = random.Random(0), []
    await until_ready(running.port)
    for _ in range(count):
        await asyncio.sleep(draw.uniform(0.0, 2.0))
        if (engine := running.engine) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine, signal.SIGKILL)
        await asyncio.sleep(0.05)
        back.append(0.05 + await until_ready(running.port))
    over.set()
    await asyncio.gather(*tasks)
    exits = int(running.child.poll() is not None)
    return {"kills": count, "clients": KILL_CLIENTS, "ends": dict(ends), "back_s": back, "exits": exits}


def kills_bars(part: dict[str, Any]) -> list[Bar]:
    """No client hangs, none is left without a word, the server stays."""
    ends, what = part["ends"], f"{part['kills']} kills of the engine under {part['clients']} streaming clients, embedded model"
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    return [
        Bar("5.kills_hung", f"clients that hung for {HUNG_S:g} s; {what}", ends.get("hung", 0), "clients", 0, "<=", told),
        Bar("5.kills_untold", f"streams that ended without a word; {what}", ends.get("cut", 0), "streams", 0, "<=", told),
        Bar("5.kills_exits", f"exits of the server; {what}", part["exits"], "exits", 0, "<=", told),
        Bar(
            "5.kills_back",
            f"longest time until it was ready again, loading included; {what}",
            max(part["back_s"]),
            "s",
            BACK_S,
            "<=",
            f"median {statistics.median(part['back_s']):.1f} s",
        ),
    ]


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "p95": ordered[int(0.95 * (len(ordered) - 1))], "worst": ordered[-1]}


PARTS: dict[str, parts.Part] = {
    "load": (load, load_bars),
    "overhead": (overhead, overhead_bars),
    "kills": (kills, kills_bars),
}


def main() -> None:
    """Measure what was asked for; print the rows of all parts that are there."""
    parser = parts.parser_of(__doc__, PARTS)
    parser.add_argument("--seconds", type=float, default=120.0, help="of the load")
    parser.add_argument("--clients", type=int, default=200, help="of the load")
    parser.add_argument("--kills", type=int, default=100, help="of the engine")
    parts.measure("server", PARTS, parser.parse_args())


if __name__ == "__main__":
    main()
