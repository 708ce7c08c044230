"""Tests with few visitors for a few seconds. The long runs are the commands of ``python -m tests.load``."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator

import pytest

from granite_demo.engine.waiting_queue import MAX_WAITING
from tests.load.__main__ import as_text
from tests.load.attacks import dishonest
from tests.load.process import LoadServer, server
from tests.load.soak import client, light_requests, settled, soak, spread
from tests.load.visitors import NONSENSE, VisitRecord, crowd, opened

PLAIN = {"leaves": 0, "nonsense": 0}


@pytest.fixture(scope="module")
def running() -> Iterator[LoadServer]:
    """Run a server that answers one request at a time, so that the others wait."""
    with server(rate=400, ttft=0.02, places=1) as found:
        yield found


async def test_f04_the_order_of_service_is_that_of_arrival(running: LoadServer) -> None:
    async with client(running.url) as http:
        site = await opened(http)
        records = await crowd(site, 16, 12, first=5001, **PLAIN)
        served = [row for row in await running.served(http) if (row.seed or 0) > 5000]
        assert await settled(running, http)
    assert [one.outcome for one in records] == ["answered"] * 16, [one.why for one in records]
    assert len(served) == 16
    firsts = [row.first or 0.0 for row in served]  # the rows are in the order of arrival
    assert firsts == sorted(firsts)
    assert all((row.ended or 0) >= (row.first or 0) > 0 and row.tokens == 12 for row in served)


@pytest.mark.parametrize("number", range(len(NONSENSE)))
async def test_nonsense_is_rejected_and_is_not_a_failure(running: LoadServer, number: int) -> None:
    class Chosen:
        def choice(self, options: object) -> object:
            return NONSENSE[number]

    record = VisitRecord(1, "page")
    async with client(running.url) as http:
        await (await opened(http)).nonsense(record, Chosen())  # type: ignore[arg-type]
        assert await settled(running, http)
    assert record.outcome == "nonsense", record.why


async def test_f04_a_hundred_at_once_are_answered_or_rejected_and_light_requests_work(running: LoadServer) -> None:
    light: list[float] = []
    async with client(running.url) as http, client(running.url) as aside:
        site = await opened(http)
        watcher = asyncio.create_task(light_requests(aside, 0.05, light))
        records = await crowd(site, 100, 4, first=7001, **PLAIN)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        assert await settled(running, http)
    count = Counter(one.outcome for one in records)
    assert set(count) <= {"answered", "refused"}, [one.why for one in records if one.why]
    assert count["answered"] >= MAX_WAITING
    assert len(light) > 5
    assert spread(light)[1] < 2  # 200 ms on an idle machine; see targets


async def test_requests_above_the_limit_are_rejected_and_none_fails(running: LoadServer) -> None:
    async with client(running.url) as http:
        site = await opened(http)
        first = asyncio.create_task(crowd(site, 1, 100_000, first=6000, **PLAIN))  # runs, all others wait
        async with asyncio.timeout(90):
            while not (await running.state(http))["running"]:
                await asyncio.sleep(0.1)
        asking = asyncio.create_task(crowd(site, MAX_WAITING + 10, 2, first=6002, step=2, **PLAIN))
        async with asyncio.timeout(90):
            while (await running.state(http))["waiting"] < MAX_WAITING:
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        first.cancel()  # disconnects
        records = await asking
        assert await settled(running, http)
    count = Counter(one.outcome for one in records)
    assert set(count) == {"answered", "refused"}, [one.why for one in records if one.why]
    assert count["answered"] >= MAX_WAITING


async def test_after_disconnects_and_nonsense_the_server_is_idle(running: LoadServer) -> None:
    found = await soak(running, visitors=8, seconds=4, tokens=8)
    assert found.broken == [], found.failures
    assert found.outcomes["answered"] > 0
    assert set(found.outcomes) <= {"answered", "refused", "left", "nonsense"}
    assert not [line for line in running.log if "Traceback" in line], "".join(running.log[-20:])


@pytest.mark.release
def test_attackers_among_the_visitors_of_llama_cpp() -> None:
    """A fifth of the visitors attacks. 10 minutes, or the seconds in GRANITE_DEMO_SOAK."""
    seconds = float(os.environ.get("GRANITE_DEMO_SOAK", "600"))
    with server("sample", public=1) as found:
        result = asyncio.run(soak(found, 20, seconds, tokens=16, dishonest=dishonest))
    print(as_text(result))
    assert result.broken == [], result.failures
    assert not [line for line in found.log if "Traceback" in line], "".join(found.log[-20:])


@pytest.mark.release
@pytest.mark.parametrize("engine", ["fake", "sample"])
def test_a_hundred_visitors_for_long(engine: str) -> None:
    """10 minutes, or the seconds in GRANITE_DEMO_SOAK."""
    with server(engine) as found:
        result = asyncio.run(soak(found, 100, float(os.environ.get("GRANITE_DEMO_SOAK", "600"))))
    assert result.broken == [], result.failures
