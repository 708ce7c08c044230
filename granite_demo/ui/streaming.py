"""Paces a stream of events for the browser: few updates a second, and a sign of life while nothing comes."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

Event = TypeVar("Event")

UPDATE_INTERVAL = 1 / 12
"""Seconds between updates: faster than anybody reads, and cheap for server and browser."""
SPREAD = 0.2
"""Where several are answered an interval is longer or shorter by a random part of itself, up to this: those who asked
together are then not all updated in the same moment, for which the model's thread would have to wait."""
MOST_UPDATES = 400
"""A second, of all answers together: where many are answered the model's thread would wait for them."""
REST = 2
"""So many times as long as an update took is waited after it: when many are answered the server is not all updates."""
LONGEST_INTERVAL = 1.0
IDLE_INTERVAL = 0.4
"""Seconds without an event after which an empty batch is yielded: Gradio notices a closed tab only when it sends."""


async def paced(
    events: AsyncGenerator[Event],
    interval: float = UPDATE_INTERVAL,
    idle: float = IDLE_INTERVAL,
    answers: Callable[[], int] = lambda: 1,
) -> AsyncGenerator[list[Event]]:
    """Yield what came since the last batch, at most once per ``interval``; an empty batch every ``idle`` seconds.

    Where the reader takes long over a batch, or ``answers`` tells that many are answered, the interval grows, up to
    ``LONGEST_INTERVAL``.

    Closing this generator closes ``events``. Raises what ``events`` raises, after the events before it.
    """
    pending: list[Event] = []
    arrived = asyncio.Event()

    async def collect() -> None:
        try:
            async for event in events:
                pending.append(event)
                arrived.set()
        finally:
            arrived.set()

    task = asyncio.create_task(collect())
    try:
        while not task.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(arrived.wait(), idle)
            arrived.clear()
            batch, pending[:] = list(pending), []
            start = time.perf_counter()
            yield batch
            if not task.done():
                count = answers()
                rest = max(REST * (time.perf_counter() - start), count / MOST_UPDATES)
                pause = max(interval, min(rest, LONGEST_INTERVAL))
                if count > 1:
                    pause *= random.uniform(1 - SPREAD, 1 + SPREAD)
                await asyncio.wait([task], timeout=pause)
        if pending:
            yield list(pending)
        await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
        await events.aclose()
