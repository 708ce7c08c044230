"""Measures the table of targets, with an engine of a fixed speed."""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from tests.load.process import LoadServer, exit_of, server
from tests.load.soak import GROWN_MB, LIGHT_SECONDS, SLOPE_MB, client, idle_after, over_engine, soak, spread
from tests.load.visitors import LoadClient, VisitRecord, crowd, opened

PAGE, API = 1, 2
"""The first seed of the visitors of this source. The step is 2."""
TTFT_MS = {PAGE: {1: 50, 10: 100, 100: 500}, API: {1: 20, 10: 50, 100: 250}}
LONG, STREAMS = 256, 16
STORM, STORM_SECONDS = 200, 0.5
PLAIN = {"leaves": 0, "nonsense": 0}


@dataclass(frozen=True, slots=True)
class Row:
    """One target and its measurement."""

    what: str
    target: str
    measured: str
    met: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self)


def table(rows: list[Row]) -> str:
    """Return a Markdown table."""
    lines = ["| what | target | measured | |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.target} | {row.measured} | {'met' if row.met else '**missed**'} |" for row in rows]
    return "\n".join(lines)


async def measure(visitors: int, seconds: float) -> list[Row]:
    """Measure all rows. The soak test takes ``seconds``."""
    rows: list[Row] = []
    with server(rate=100, places=128) as running:
        async with client(running.url) as http:
            site = await opened(http)
            await crowd(site, 4, 8, first=900_001, **PLAIN)
            rows += await first_texts(running, site)
            rows += await between_tokens(running, site)
            rows.append(await left(running, site))
            rows.append(await stopped(running, site))
            rows.append(await storm(site))
    with server(rate=100, places=16) as running:
        rows += await connected(running)
    for name, signals, limit, code in (
        ("SIGTERM, answers and tabs open", ((0.0, signal.SIGTERM),), 10.0, 0),
        ("the same, and a second SIGTERM", ((0.0, signal.SIGTERM), (0.05, signal.SIGTERM)), 4.0, 128 + signal.SIGTERM),
    ):
        with server(places=16) as running:
            rows.append(await ended(running, name, signals, limit, code))
    with server() as running:
        rows += await lasting(running, visitors, seconds)
    return rows


async def first_texts(running: LoadServer, site: LoadClient) -> list[Row]:
    """Measure the time to first token of the web layer with several numbers of visitors."""
    rows, number = [], 1000
    for way, bounds in TTFT_MS.items():
        for count, bound in bounds.items():
            times: list[float] = []
            for _ in range(max(2, 20 // count)):
                records = await crowd(site, count, 8, first=number * 2 + way, step=2, **PLAIN)
                times += over_engine(records, await running.served(site.http))
                number += count + 1
            name = "page" if way == PAGE else "/v1"
            p50, p95 = (round(1000 * time) for time in spread(times))
            rows.append(
                Row(
                    f"web layer's TTFT, {name} @{count}", f"p95 <= {bound} ms", f"p50 {p50}, p95 {p95} ms", p95 <= bound
                )
            )
    return rows


async def between_tokens(running: LoadServer, site: LoadClient) -> list[Row]:
    """Compare the speed of one visitor and of several streams with the engine, and measure the updates of the page."""
    rows = []
    for way, name in ((PAGE, "page"), (API, "/v1")):
        [alone] = await crowd(site, 1, LONG, first=way + 100_000, **PLAIN)
        rate = (LONG - 1) / ((alone.last or 1.0) - (alone.first or 0.0))
        cost = 1 - rate / running.bare_rate
        rows.append(Row(f"inter-token overhead, 1 visitor, {name}", "<= 5 %", f"{cost:.1%}", cost <= 0.05))
    records = await crowd(site, STREAMS, LONG, first=API + 105_000, step=2, **PLAIN)
    seconds = max(one.last or 0.0 for one in records) - min(one.first or 0.0 for one in records)
    bare = STREAMS * running.bare_rate
    cost = 1 - STREAMS * (LONG - 1) / seconds / bare
    measured = f"{cost:.1%} of {bare:.0f} tokens/s"
    rows.append(Row(f"throughput lost, {STREAMS} streams, /v1", "<= 5 %", measured, cost <= 0.05))
    start = time.monotonic()
    many = await crowd(site, 100, LONG, first=PAGE + 110_000, step=2, **PLAIN)
    rate = sum(one.updates for one in many) / (time.monotonic() - start)
    rows.append(Row("page updates/s of the process, 100 visitors", ">= 300", f"{rate:.0f}", rate >= 300))
    return rows


async def left(running: LoadServer, site: LoadClient) -> Row:
    """Measure visitors that all disconnect during the answer."""
    records = await crowd(site, 40, 2000, first=120_001, leaves=1, nonsense=0)
    await asyncio.sleep(3)
    p95 = spread(idle_after(records, await running.served(site.http)))[1]
    return Row("disconnect -> engine idle, 40 at once", "p95 <= 1 s", f"p95 {p95:.2f} s", p95 <= 1)


async def stopped(running: LoadServer, site: LoadClient) -> Row:
    """Measure visitors of the page that press Stop during the answer."""

    async def stop(seed: int) -> tuple[int, float]:
        record = VisitRecord(seed, "page")
        answer = asyncio.create_task(site.page(record, 4000, leave=False))
        while record.first is None and not answer.done():
            await asyncio.sleep(0.01)
        pressed = time.monotonic()
        await site.stop(record)
        await answer
        return seed, pressed

    pressed = await asyncio.gather(*(stop(125_001 + 2 * number) for number in range(20)))
    await asyncio.sleep(2)
    ended = {row.seed: row.ended for row in await running.served(site.http)}
    p95 = spread([(ended.get(seed) or float("inf")) - at for seed, at in pressed])[1]
    return Row("Stop -> engine idle, 20 at once", "p95 <= 1 s", f"p95 {p95:.2f} s", p95 <= 1)


async def storm(site: LoadClient) -> Row:
    """Measure one request after many requests that time out after half a second."""

    async def impatient(seed: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(STORM_SECONDS):
                await crowd(site, 1, 500, first=seed, **PLAIN)

    await asyncio.gather(*(impatient(130_000 + number) for number in range(STORM)))
    start = time.monotonic()
    [record] = await crowd(site, 1, 8, first=140_000, **PLAIN)
    took = time.monotonic() - start
    met = record.outcome == "answered" and took <= 5
    return Row(
        f"an answer after {STORM} x {STORM_SECONDS} s timeouts", "<= 5 s", f"{record.outcome}, {took:.2f} s", met
    )


@asynccontextmanager
async def tabs(site: LoadClient, count: int) -> AsyncGenerator[None]:
    """Keep ``count`` pages open."""
    tasks = [asyncio.create_task(site.tab(number)) for number in range(count)]
    try:
        await asyncio.sleep(1)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def connected(running: LoadServer) -> list[Row]:
    """Measure more requests than the queue accepts, with 100 open pages."""
    async with client(running.url) as http:
        site = await opened(http)
        async with tabs(site, 100):
            records = await crowd(site, 300, 32, first=1, **PLAIN)
    count = {name: sum(one.outcome == name for one in records) for name in ("answered", "refused", "failed")}
    slow = spread([one.last - one.asked for one in records if one.outcome == "refused" and one.last])[1]
    measured = f"{count['answered']} answered, {count['refused']} refused, {count['failed']} other errors"
    return [
        Row("100 open tabs, 300 ask at once, 16 answered at a time", "no other errors", measured, not count["failed"]),
        Row("the same: time to be refused", "< 1 s", f"p95 {slow:.2f} s", slow < 1),
    ]


async def ended(
    running: LoadServer, name: str, signals: tuple[tuple[float, int], ...], limit: float, expected: int
) -> Row:
    """Measure the exit with open pages and running answers."""
    async with client(running.url) as http:
        site = await opened(http)
        async with tabs(site, 20):
            asking = asyncio.create_task(crowd(site, 32, 4000, **PLAIN))
            await asyncio.sleep(2)
            took, code = await asyncio.to_thread(exit_of, running, *signals)
            records: list[VisitRecord] = []
            with suppress(httpx.HTTPError):
                records = await asking
    lost = sum("Error" in one.why and one.first is not None for one in records)
    measured = f"exit {code} in {took:.2f} s, {lost} cut off"
    return Row(name, f"exit {expected} in {limit:g} s", measured, took <= limit and code == expected)


async def lasting(running: LoadServer, visitors: int, seconds: float) -> list[Row]:
    """Return the rows of a soak test."""
    found = await soak(running, visitors, seconds)
    asked = sum(found.outcomes.values())
    p95, rate = found.light[1], found.light_rate
    ends = ", ".join(f"{name} {found.base[name]:.0f} -> {found.end[name]:.0f}" for name in ("threads", "fds"))
    ends += f", tasks {found.tasks[0]} -> {found.tasks[1]}"
    back = not [name for name in found.broken if name.endswith("not back")]
    return [
        Row(
            f"light requests, {visitors} visitors",
            "p95 < 200 ms, >= 50 req/s",
            f"p95 {p95 * 1000:.0f} ms, {rate:.0f} req/s of 60 asked",
            p95 < LIGHT_SECONDS and rate >= 50,
        ),
        Row(f"soak, {seconds:.0f} s", "no failure", str(found.outcomes), not found.outcomes.get("failed")),
        Row(f"memory, {asked} requests", f"< {SLOPE_MB} MB/100", f"{found.slope:+.2f} MB/100", found.slope < SLOPE_MB),
        Row("memory in all", f"< {GROWN_MB:g} MB", f"{found.grown:+.1f} MB", found.grown < GROWN_MB),
        Row("threads, descriptors and tasks", "back to base", ends, back),
    ]
