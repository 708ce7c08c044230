"""A stream of events, paced for the browser."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from granite_demo.errors import EngineError
from granite_demo.types.events import StreamEvent, TextDelta
from granite_demo.ui.streaming import MOST_UPDATES, REST, SPREAD, paced


def delta(number: int) -> TextDelta:
    return TextDelta(str(number), number)


class Source:
    """Yields ``count`` events, one every ``delay`` seconds, then raises ``error``, or waits to be closed."""

    def __init__(
        self, count: int = 0, delay: float = 0.0, error: Exception | None = None, *, endless: bool = False
    ) -> None:
        self.events = [delta(number) for number in range(count)]
        self.delay = delay
        self.error = error
        self.endless = endless
        self.started = asyncio.Event()
        self.closed = False

    async def stream(self) -> AsyncGenerator[StreamEvent]:
        self.started.set()
        try:
            for event in self.events:
                await asyncio.sleep(self.delay)
                yield event
            if self.error:
                raise self.error
            if self.endless:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def test_a_burst_becomes_few_batches() -> None:
    source = Source(1000)
    batches = [batch async for batch in paced(source.stream(), interval=0.2)]
    assert [event for batch in batches for event in batch] == source.events
    assert len(batches) < 20
    assert source.closed


async def test_at_most_one_batch_comes_in_an_interval() -> None:
    clock = asyncio.get_running_loop().time
    source = Source(40, delay=0.01)
    times: list[float] = []
    events: list[StreamEvent] = []
    async for batch in paced(source.stream(), interval=0.1):
        times.append(clock())
        events += batch
    # The end does not wait for its turn.
    gaps = [after - before for before, after in zip(times, times[1:-1], strict=False)]
    assert len(gaps) >= 2
    assert min(gaps) > 0.09
    assert events == source.events


async def test_who_takes_long_over_a_batch_gets_the_next_one_later() -> None:
    clock = asyncio.get_running_loop().time
    begun: list[float] = []
    async for _ in paced(Source(60, delay=0.01).stream(), interval=0.01):
        begun.append(clock())
        await asyncio.sleep(0.05)
    gaps = [after - before for before, after in zip(begun, begun[1:-1], strict=False)]
    assert gaps
    assert min(gaps) > 0.05 * REST


async def test_where_many_are_answered_updates_come_seldom() -> None:
    clock = asyncio.get_running_loop().time
    times: list[float] = []
    async for _ in paced(Source(60, delay=0.01).stream(), interval=0.01, answers=lambda: MOST_UPDATES // 10):
        times.append(clock())
    gaps = [after - before for before, after in zip(times, times[1:-1], strict=False)]
    assert len(gaps) >= 2
    assert min(gaps) > 0.1 * (1 - SPREAD) * 0.9


async def test_those_who_stream_together_are_not_updated_together() -> None:
    clock = asyncio.get_running_loop().time

    async def gap() -> float:
        """Seconds between two updates."""
        source = Source(100, delay=0.01, endless=True)
        async with aclosing(paced(source.stream(), interval=0.5, answers=lambda: 20)) as batches:
            await anext(batches)
            start = clock()
            await anext(batches)
            return clock() - start

    gaps = await asyncio.gather(*(gap() for _ in range(20)))
    assert max(gaps) - min(gaps) > 0.5 * SPREAD


async def test_the_first_event_does_not_wait() -> None:
    async with aclosing(paced(Source(1, endless=True).stream(), interval=60, idle=60)) as batches:
        assert await asyncio.wait_for(anext(batches), 20) == [delta(0)]


@pytest.mark.parametrize("count", [0, 3])
async def test_the_end_does_not_wait(count: int) -> None:
    source = Source(count, delay=0.01)

    async def collect() -> list[list[StreamEvent]]:
        return [batch async for batch in paced(source.stream(), interval=60, idle=60)]

    batches = await asyncio.wait_for(collect(), 20)
    assert [event for batch in batches for event in batch] == source.events


async def test_empty_batches_come_while_nothing_does() -> None:
    clock = asyncio.get_running_loop().time
    source = Source(endless=True)
    async with aclosing(paced(source.stream(), interval=0.01, idle=0.1)) as batches:
        start = clock()
        assert [await asyncio.wait_for(anext(batches), 20) for _ in range(3)] == [[], [], []]
        assert clock() - start > 0.27


async def test_events_come_after_idle_batches() -> None:
    source = Source(2, delay=0.3)
    batches = [batch async for batch in paced(source.stream(), interval=0.01, idle=0.02)]
    assert batches[:2] == [[], []]
    assert [event for batch in batches for event in batch] == source.events


async def test_a_slow_reader_gets_everything_at_once() -> None:
    source = Source(100, endless=True)
    async with aclosing(paced(source.stream(), interval=0.01)) as batches:
        first = await anext(batches)
        await asyncio.sleep(0.3)
        assert first + await anext(batches) == source.events


@pytest.mark.parametrize("count", [0, 1], ids=["before the first event", "after an event"])
async def test_closing_closes_the_source(count: int) -> None:
    source = Source(count, endless=True)
    batches = paced(source.stream(), idle=0.01)
    assert await anext(batches) == source.events
    assert not source.closed
    await batches.aclose()
    assert source.closed


async def test_a_cancelled_reader_closes_the_source() -> None:
    source = Source(endless=True)

    async def read() -> None:
        async with aclosing(paced(source.stream(), interval=60, idle=60)) as batches:
            async for _ in batches:
                pytest.fail("there was nothing to read")

    task = asyncio.create_task(read())
    await source.started.wait()
    assert not source.closed
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed


@pytest.mark.parametrize("count", [0, 3, 200])
async def test_an_error_comes_after_the_events_before_it(count: int) -> None:
    source = Source(count, error=EngineError("lost"))
    events: list[StreamEvent] = []

    async def read() -> None:
        async for batch in paced(source.stream(), interval=0.02):
            events.extend(batch)

    with pytest.raises(EngineError, match="lost"):
        await read()
    assert events == source.events
    assert source.closed


async def test_an_error_nobody_waits_for_is_dropped_when_closing() -> None:
    source = Source(1, error=EngineError("lost"))
    batches = paced(source.stream(), interval=60)
    assert await anext(batches) == [delta(0)]
    await asyncio.sleep(0.05)
    assert source.closed
    await batches.aclose()
