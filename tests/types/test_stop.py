"""Tests that a stop ends only its wait."""

import asyncio
import threading

import pytest

from granite_demo.types.stop import Stop, StoppedError


async def test_a_wait_ends_when_another_thread_sets_the_stop() -> None:
    stop, over = Stop(), False

    async def wait() -> None:
        nonlocal over
        try:
            await asyncio.sleep(60)
        finally:
            over = True

    timer = threading.Timer(0.05, stop.set)
    timer.start()
    with pytest.raises(StoppedError):
        async with asyncio.timeout(5):
            await stop.guard(wait())
    assert over
    timer.join()


async def test_a_stop_that_is_set_ends_waits_but_returns_available_results() -> None:
    stop = Stop()
    stop.set()
    for _ in range(2):
        with pytest.raises(StoppedError):
            await stop.guard(asyncio.sleep(0))
    queue: asyncio.Queue[int] = asyncio.Queue()
    queue.put_nowait(1)
    assert await stop.guard(queue.get()) == 1


async def test_a_stop_after_a_wait_has_no_effect() -> None:
    stop = Stop()
    assert await stop.guard(asyncio.sleep(0, "value")) == "value"
    stop.set()
    await asyncio.sleep(0.01)


async def test_errors_and_cancellation_are_raised() -> None:
    stop = Stop()

    async def fail() -> None:
        raise TimeoutError("another limit")

    with pytest.raises(TimeoutError, match="another limit"):
        await stop.guard(fail())
    task = asyncio.create_task(stop.guard(asyncio.sleep(60)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_stop_calls_only_inside_its_context() -> None:
    first, second, third = Stop(), Stop(), Stop()
    with first.calling(second.set):
        pass
    with first.calling(third.set):
        first.set()
    late = Stop()
    with first.calling(late.set):
        assert late.is_set()
    assert (second.is_set(), third.is_set()) == (False, True)
