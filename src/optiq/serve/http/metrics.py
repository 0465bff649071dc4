"""What the server measures of itself, in Prometheus' text format.

    Measured    a gateway that notes the times and ends of requests on their way through
    Metrics     their totals; beside them, when it is asked, how busy the engines are and what they count

Names begin with `optiq_` and have the label `model`. Totals that engines keep (`optiq_engine_<name>_total`) begin again at 0 when
an engine does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from optiq.errors import OptiqError
from optiq.serve.gateway import Gateway, Unavailable
from optiq.serve.request import Event, Finished, Load, Refused, Request, Token

LOAD_S = 1.0  # an engine in a long step is not waited for: its last answer is told again
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Totals since the start of the server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        label = ["model"]
        self.first_s = Histogram(
            "optiq_time_to_first_token_seconds", "From a request to its first token", label, buckets=_SECONDS, registry=registry
        )
        self.gap_s = Histogram("optiq_token_gap_seconds", "Between tokens", label, buckets=_SECONDS, registry=registry)
        self.queue_s = Histogram("optiq_queue_seconds", "From a request to its start", label, buckets=_SECONDS, registry=registry)
        self.ends = Counter("optiq_requests", "Requests by how they ended", ["model", "end"], registry=registry)
        told = {
            "prompt_tokens": "Tokens of prompts",
            "cached_tokens": "Tokens of prompts that came from the prefix cache",
            "tokens": "Tokens of replies",
            "drafted": "Tokens that speculation proposed",
            "accepted": "Proposed tokens that were right",
        }
        self.totals = {name: Counter(f"optiq_{name}", text, label, registry=registry) for name, text in told.items()}
        self.watched: list[Measured] = []
        registry.register(_Engines(self.watched))

    async def text(self) -> bytes:
        """All of it."""
        await asyncio.gather(*(gateway.look() for gateway in self.watched))
        return generate_latest(self.registry)


@dataclass
class Measured:
    """A gateway whose requests are noted.

    Args:
        inner: the gateway.
        name: of its model.
        metrics: where they are noted.
    """

    inner: Gateway
    name: str
    metrics: Metrics
    last: Load | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.metrics.watched.append(self)
        self._first = self.metrics.first_s.labels(self.name)
        self._gap = self.metrics.gap_s.labels(self.name)

    @property
    def ready(self) -> bool:
        """Whether the engine is up and makes progress."""
        return self.inner.ready

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the mounted adapters."""
        return self.inner.adapters

    async def run(self, request: Request) -> AsyncGenerator[Event, None]:
        """As the inner gateway's."""
        last, tell, end = time.perf_counter(), self._first.observe, "cancelled"
        try:
            async with aclosing(self.inner.run(request)) as events:
                async for event in events:
                    if isinstance(event, Token):
                        now = time.perf_counter()
                        tell(now - last)
                        last, tell = now, self._gap.observe
                    elif isinstance(event, Finished):
                        end = event.finish
                        self._count(event)
                    yield event
        except Refused as refused:
            end = f"refused_{refused.reason}"
            raise
        except Unavailable:
            end = "unavailable"
            raise
        except OptiqError:
            end = "refused_request"
            raise
        finally:
            self.metrics.ends.labels(self.name, end).inc()

    async def load(self) -> Load:
        """How busy the engine is."""
        return await self.inner.load()

    async def mount(self, name: str, path: str) -> None:
        """As the inner gateway's."""
        await self.inner.mount(name, path)

    async def unmount(self, name: str) -> None:
        """As the inner gateway's."""
        await self.inner.unmount(name)

    async def look(self) -> None:
        """Ask how busy the engine is, and remember it."""
        try:
            self.last = await asyncio.wait_for(self.inner.load(), LOAD_S)
        except TimeoutError:
            pass
        except Unavailable:
            self.last = None

    def _count(self, event: Finished) -> None:
        self.metrics.queue_s.labels(self.name).observe(event.usage.queue_s)
        for name, counter in self.metrics.totals.items():
            counter.labels(self.name).inc(getattr(event.usage, name))


class _Engines:
    """What engines say of themselves, as metrics."""

    def __init__(self, watched: list[Measured]) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("optiq_ready", "Whether the engine makes progress", labels=["model"])
        restarts = CounterMetricFamily("optiq_engine_restarts", "Times that the engine was lost and came back", labels=["model"])
        busy = GaugeMetricFamily("optiq_requests_now", "Requests in the engine", labels=["model", "state"])
        memory = GaugeMetricFamily("optiq_engine_memory_bytes", "Memory of the engine", labels=["model", "what"])
        totals: dict[str, CounterMetricFamily] = {}
        for gateway in self._watched:
            ready.add_metric([gateway.name], float(gateway.ready))
            restarts.add_metric([gateway.name], getattr(gateway.inner, "restarts", 0))
            load = gateway.last
            if load is None:
                continue
            for state in ("waiting", "reading", "decoding"):
                busy.add_metric([gateway.name, state], getattr(load, state))
            for what in ("cache", "prefix", "limit"):
                memory.add_metric([gateway.name, what], getattr(load, f"{what}_bytes"))
            if (resident := resident_bytes(getattr(gateway.inner, "pid", None))) is not None:
                memory.add_metric([gateway.name, "resident"], resident)
            for name, value in load.counters.items():
                made = CounterMetricFamily(f"optiq_engine_{name}", "A total of the engine's own", labels=["model"])
                totals.setdefault(name, made).add_metric([gateway.name], value)
        yield from (ready, restarts, busy, memory, *totals.values())


def resident_bytes(pid: int | None) -> int | None:
    """Of a process; None where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), None)
