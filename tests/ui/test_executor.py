"""Work in threads of the page: in turn, never more than a number of one visitor, never longer than a time."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from granite_demo.errors import VisitorLimitError
from granite_demo.ui.executor import FairExecutor, off_loop, visitor


@asynccontextmanager
async def one_thread(waiting: int = 100) -> AsyncGenerator[tuple[Callable[[str, str], asyncio.Task[None]], list[str]]]:
    """Yield a function that calls as a visitor, and the calls in the order in which they ran; the first one waits."""
    executor, gate, ran = FairExecutor(1, waiting), threading.Event(), list[str]()

    async def call_as(who: str, what: str) -> None:
        visitor.set(who)
        await executor.run(ran.append, what)

    def call(who: str, what: str) -> asyncio.Task[None]:
        return asyncio.create_task(call_as(who, what))

    first = asyncio.create_task(executor.run(gate.wait))
    await asyncio.sleep(0)
    try:
        yield call, ran
    finally:
        gate.set()
        await first


async def test_visitors_take_turns() -> None:
    async with one_thread() as (call, ran):
        tasks = [call("ann", f"ann{number}") for number in range(5)]
        await asyncio.sleep(0)
        tasks += [call("bob", "bob0"), call("cid", "cid0"), call("bob", "bob1")]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert ran == ["ann0", "bob0", "cid0", "ann1", "bob1", "ann2", "ann3", "ann4"]


async def test_a_visitor_has_a_number_of_calls_that_wait() -> None:
    async with one_thread(waiting=2) as (call, ran):
        tasks = [call("ann", f"ann{number}") for number in range(3)]
        tasks.append(call("bob", "bob0"))
        await asyncio.sleep(0.01)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in done] == [type(None), type(None), VisitorLimitError, type(None)]
    assert ran == ["ann0", "bob0", "ann1"]


async def test_what_has_no_result_in_time_is_an_error_and_does_not_begin_later() -> None:
    executor, gate, ran = FairExecutor(1, seconds=0.05), threading.Event(), list[str]()
    first = asyncio.create_task(executor.run(gate.wait))
    await asyncio.sleep(0)
    try:
        with pytest.raises(VisitorLimitError, match="busy"):
            await executor.run(ran.append, "late")
        with pytest.raises(VisitorLimitError):
            await first
    finally:
        gate.set()
    await asyncio.sleep(0.05)
    assert not ran


async def test_errors_are_those_of_the_function() -> None:
    def fail() -> None:
        raise TimeoutError("own")

    with pytest.raises(TimeoutError, match="own"):
        await off_loop(fail)
    assert await off_loop(visitor.get) == visitor.get()
