"""The soak test: many visitors for some time. It measures outcomes, times and leaks of the server."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from statistics import linear_regression, quantiles
from typing import Any

import httpx

from tests.load.engine import RequestRecord
from tests.load.process import LoadServer
from tests.load.visitors import VisitRecord, opened, visit

WARM_UP = 0.1
SLOPE_MB, GROWN_MB = 0.5, 50.0
SLACK = {"threads": 48, "fds": 16}
"""Thread pools grow and keep their threads. That of anyio has 40."""
IDLE_SECONDS, LIGHT_SECONDS = 1.0, 0.2
SETTLE_SECONDS = 15.0
LIGHT_ASKERS, LIGHT_EVERY = 6, 0.1
"""60 light requests a second, if the answers come in time."""
SPARE_TASKS = 4
MIN_FOR_GROWTH, MIN_FOR_SLOPE = 500, 2000
"""With fewer requests, caches grow more than leaks: allocators, and the 2,000 pages that the server remembers."""


address: ContextVar[str] = ContextVar("address", default="")
"""The address from which the requests of a task come, through a trusted proxy. Empty: that of this machine."""


@dataclass
class Soak:
    """The result of one run, in seconds, MB and counts. ``broken`` has the names of the limits that were exceeded."""

    seconds: float
    outcomes: dict[str, int]
    ttft: dict[str, list[float]]
    """Time to first token of the web layer, without the time of the engine: [p50, p95] by source."""
    light: list[float]
    light_rate: float
    idle: list[float]
    """Time from a disconnect to the end of the request in the engine: [p50, p95]."""
    slope: float
    grown: float
    base: dict[str, float]
    end: dict[str, float]
    tasks: tuple[int, int]
    """asyncio tasks before the first visitor and after the last."""
    updates_rate: float
    failures: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self)


def spread(samples: list[float]) -> list[float]:
    """Return [p50, p95], or zeros if there are no samples."""
    if len(samples) < 2:
        return [*samples, *samples][:2] or [0.0, 0.0]
    cuts = quantiles(samples, n=100, method="inclusive")
    return [cuts[49], cuts[94]]


def client(url: str) -> httpx.AsyncClient:
    """Return a client without a limit of connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=60, limits=limits, event_hooks={"request": [_add_address]})


async def _add_address(request: httpx.Request) -> None:
    if sender := address.get():
        request.headers.setdefault("x-forwarded-for", sender)


def over_engine(records: list[VisitRecord], served: list[RequestRecord]) -> list[float]:
    """Return seconds to the first text minus the time of the engine, which includes its queue."""
    rows = {row.seed: row for row in served}
    return [
        one.first - one.asked - (row.first - row.arrived)
        for one in records
        if one.first and (row := rows.get(one.seed)) and row.first
    ]


def idle_after(records: list[VisitRecord], served: list[RequestRecord]) -> list[float]:
    """Return seconds from each disconnect to the end of the request in the engine."""
    rows = {row.seed: row for row in served}
    left = [one for one in records if one.outcome == "left" and one.last]
    return [max(0.0, row.ended - (one.last or 0)) for one in left if (row := rows.get(one.seed)) and row.ended]


async def settled(server: LoadServer, http: httpx.AsyncClient) -> bool:
    """Wait until the engine is idle. Returns False if it is busy after ``SETTLE_SECONDS``."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (state := await server.state(http))["running"] or state["waiting"]:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def light_requests(http: httpx.AsyncClient, every: float, into: list[float]) -> None:
    """Request /health and /v1/models alternately until cancelled."""
    for path in itertools.cycle(("/health", "/v1/models")):
        start = time.monotonic()
        (await http.get(path)).raise_for_status()
        into.append(time.monotonic() - start)
        await asyncio.sleep(max(0.0, every - (time.monotonic() - start)))


Dishonest = Callable[[httpx.AsyncClient, random.Random], Awaitable[None]]
"""Sends one request that attacks the server. Raises nothing."""


async def soak(
    server: LoadServer,
    visitors: int,
    seconds: float,
    tokens: int = 32,
    seed: int = 0,
    dishonest: Dishonest | None = None,
) -> Soak:
    """Let ``visitors`` send requests repeatedly for ``seconds``. Every fifth is ``dishonest``, if that is given."""
    async with client(server.url) as http, client(server.url) as aside:
        site = await opened(http)
        await visit(site, 0, tokens, random.Random(0), 0, 0)  # the first visit starts threads that remain
        before = int((await server.state(aside))["tasks"])
        start = time.monotonic()
        records: list[VisitRecord] = []
        served: dict[int | None, RequestRecord] = {}
        memory: list[tuple[int, dict[str, float]]] = []
        light: list[float] = []
        numbers, chance = itertools.count(1), random.Random(seed)

        async def come_again(number: int) -> None:
            if dishonest:
                address.set(f"192.0.2.{number}")
            while time.monotonic() < start + seconds:
                if dishonest and number % 5 == 0:
                    await dishonest(aside, chance)
                    records.append(VisitRecord(0, "attacker", "dishonest"))
                    continue
                records.append(await visit(site, next(numbers), tokens, chance))
                await asyncio.sleep(0.05 + chance.random() * 0.2)

        async def watch() -> None:
            while True:
                memory.append((len(records), server.census()))
                served.update({row.seed: row for row in await server.served(aside)})
                await asyncio.sleep(max(0.5, seconds / 100))

        asking = (light_requests(aside, LIGHT_EVERY, light) for _ in range(LIGHT_ASKERS))
        watchers = [asyncio.create_task(one) for one in (watch(), *asking)]
        await asyncio.gather(*map(come_again, range(1, visitors + 1)))
        took = time.monotonic() - start
        for task in watchers:
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        idle = await settled(server, aside)
        served.update({row.seed: row for row in await server.served(aside)})
        await asyncio.sleep(1.0)
        counted = before, int((await server.state(aside))["tasks"])
    return _result(took, records, list(served.values()), memory, server.census(), light, idle, counted)


def _result(
    took: float,
    records: list[VisitRecord],
    served: list[RequestRecord],
    memory: list[tuple[int, dict[str, float]]],
    end: dict[str, float],
    light: list[float],
    idle: bool,
    tasks: tuple[int, int],
) -> Soak:
    warm = [row for row in memory if row[0] >= WARM_UP * len(records)] or memory[-1:]
    counts = [count for count, _ in warm]
    sizes = [census["rss_mb"] for _, census in warm]
    slope = linear_regression(counts, sizes).slope * 100 if len(set(counts)) > 1 else 0.0
    by_source = {
        source: over_engine([one for one in records if one.source == source], served) for source in ("page", "api")
    }
    found = Soak(
        took,
        dict(Counter(one.outcome for one in records)),
        {source: spread(times) for source, times in by_source.items()},
        spread(light),
        len(light) / took,
        spread(idle_after(records, served)),
        slope,
        end["rss_mb"] - sizes[0],
        warm[0][1],
        end,
        tasks,
        sum(one.updates for one in records if one.source == "page") / took,
        sorted({one.why for one in records if one.outcome == "failed"})[:10],
    )
    bounds = {
        f"{found.outcomes.get('failed', 0)} requests failed": not found.outcomes.get("failed"),
        "the engine is not idle at the end": idle,
        "memory grows by each request": len(records) < MIN_FOR_SLOPE or slope < SLOPE_MB,
        "memory grew in all": found.grown < GROWN_MB or len(records) < MIN_FOR_GROWTH,
        "tasks are not back": tasks[1] <= tasks[0] + SPARE_TASKS,
        **{f"{name} are not back": end[name] <= found.base[name] + slack for name, slack in SLACK.items()},
    }
    found.broken = [name for name, kept in bounds.items() if not kept]
    return found
