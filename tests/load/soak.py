"""Many visitors for a while: what they got, how soon, and what it leaves behind in the server."""

import asyncio
import itertools
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from statistics import linear_regression, quantiles
from typing import Any

import httpx

from tests.load.engine import Served
from tests.load.process import Loaded
from tests.load.visitors import Heard, opened, visit

WARM_UP = 0.1
SLOPE_MB, GROWN_MB = 0.5, 50.0
SLACK = {"threads": 48, "fds": 16}
"""Pools of threads fill as they are needed and stay: anyio's has 40."""
IDLE_SECONDS, LIGHT_SECONDS = 1.0, 0.2
SETTLE_SECONDS = 15.0
LIGHT_ASKERS, LIGHT_EVERY = 6, 0.1
"""60 light requests a second, where they are answered in time."""
SPARE_TASKS = 4
MIN_FOR_GROWTH, MIN_FOR_SLOPE = 500, 2000
"""Requests below which what fills up is more than what leaks: allocators, and the 2,000 pages that are remembered."""


@dataclass
class Soak:
    """What one run found: seconds, MB and counts. ``broken`` names the bounds that were."""

    seconds: float
    outcomes: dict[str, int]
    ttft: dict[str, list[float]]
    """Of the web layer: what the visitor waited beyond the engine's own; [p50, p95] by source."""
    light: list[float]
    light_rate: float
    idle: list[float]
    """From a visitor's leaving to the engine's letting go."""
    slope: float
    grown: float
    base: dict[str, float]
    end: dict[str, float]
    tasks: tuple[int, int]
    """Of asyncio, before the first visitor and after the last."""
    updates_rate: float
    failures: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def spread(samples: list[float]) -> list[float]:
    """[p50, p95]; zeros of nothing."""
    if len(samples) < 2:
        return [*samples, *samples][:2] or [0.0, 0.0]
    cuts = quantiles(samples, n=100, method="inclusive")
    return [cuts[49], cuts[94]]


def client(url: str) -> httpx.AsyncClient:
    """A client with as many connections as visitors."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=60, limits=limits)


def over_engine(heard: list[Heard], served: list[Served]) -> list[float]:
    """Seconds to the first text beyond what the engine took, its queue included."""
    rows = {row.seed: row for row in served}
    return [
        one.first - one.asked - (row.first - row.arrived)
        for one in heard
        if one.first and (row := rows.get(one.seed)) and row.first
    ]


def idle_after(heard: list[Heard], served: list[Served]) -> list[float]:
    """Seconds from when a visitor left to the end of their request in the engine."""
    rows = {row.seed: row for row in served}
    left = [one for one in heard if one.outcome == "left" and one.last]
    return [max(0.0, row.ended - (one.last or 0)) for one in left if (row := rows.get(one.seed)) and row.ended]


async def settled(server: Loaded, http: httpx.AsyncClient) -> bool:
    """Wait for the engine to be idle. False where it still works after ``SETTLE_SECONDS``."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (state := await server.state(http))["running"] or state["waiting"]:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def light_requests(http: httpx.AsyncClient, every: float, into: list[float]) -> None:
    """Ask for /health and /v1/models in turn until cancelled."""
    for path in itertools.cycle(("/health", "/v1/models")):
        start = time.monotonic()
        (await http.get(path)).raise_for_status()
        into.append(time.monotonic() - start)
        await asyncio.sleep(max(0.0, every - (time.monotonic() - start)))


async def soak(server: Loaded, visitors: int, seconds: float, tokens: int = 32, seed: int = 0) -> Soak:
    """``visitors`` come again and again for ``seconds``."""
    async with client(server.url) as http, client(server.url) as aside:
        site = await opened(http)
        await visit(site, 0, tokens, random.Random(0), 0, 0)  # the first of all starts what stays
        before = int((await server.state(aside))["tasks"])
        start = time.monotonic()
        heard: list[Heard] = []
        served: dict[int | None, Served] = {}
        memory: list[tuple[int, dict[str, float]]] = []
        light: list[float] = []
        numbers, chance = itertools.count(1), random.Random(seed)

        async def come_again() -> None:
            while time.monotonic() < start + seconds:
                heard.append(await visit(site, next(numbers), tokens, chance))
                await asyncio.sleep(0.05 + chance.random() * 0.2)

        async def watch() -> None:
            while True:
                memory.append((len(heard), server.census()))
                served.update({row.seed: row for row in await server.served(aside)})
                await asyncio.sleep(max(0.5, seconds / 100))

        asking = (light_requests(aside, LIGHT_EVERY, light) for _ in range(LIGHT_ASKERS))
        watchers = [asyncio.create_task(one) for one in (watch(), *asking)]
        await asyncio.gather(*(come_again() for _ in range(visitors)))
        took = time.monotonic() - start
        for task in watchers:
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        idle = await settled(server, aside)
        served.update({row.seed: row for row in await server.served(aside)})
        await asyncio.sleep(1.0)
        counted = before, int((await server.state(aside))["tasks"])
    return _result(took, heard, list(served.values()), memory, server.census(), light, idle, counted)


def _result(
    took: float,
    heard: list[Heard],
    served: list[Served],
    memory: list[tuple[int, dict[str, float]]],
    end: dict[str, float],
    light: list[float],
    idle: bool,
    tasks: tuple[int, int],
) -> Soak:
    warm = [row for row in memory if row[0] >= WARM_UP * len(heard)] or memory[-1:]
    counts = [count for count, _ in warm]
    sizes = [census["rss_mb"] for _, census in warm]
    slope = linear_regression(counts, sizes).slope * 100 if len(set(counts)) > 1 else 0.0
    by_source = {
        source: over_engine([one for one in heard if one.source == source], served) for source in ("page", "api")
    }
    found = Soak(
        took,
        dict(Counter(one.outcome for one in heard)),
        {source: spread(times) for source, times in by_source.items()},
        spread(light),
        len(light) / took,
        spread(idle_after(heard, served)),
        slope,
        end["rss_mb"] - sizes[0],
        warm[0][1],
        end,
        tasks,
        sum(one.updates for one in heard if one.source == "page") / took,
        sorted({one.why for one in heard if one.outcome == "failed"})[:10],
    )
    bounds = {
        f"{found.outcomes.get('failed', 0)} requests failed": not found.outcomes.get("failed"),
        "the engine is not idle at the end": idle,
        "memory grows by each request": len(heard) < MIN_FOR_SLOPE or slope < SLOPE_MB,
        "memory grew in all": found.grown < GROWN_MB or len(heard) < MIN_FOR_GROWTH,
        "tasks are not back": tasks[1] <= tasks[0] + SPARE_TASKS,
        **{f"{name} are not back": end[name] <= found.base[name] + slack for name, slack in SLACK.items()},
    }
    found.broken = [name for name, kept in bounds.items() if not kept]
    return found
