"""When an answer has to end: the time for it begins with its turn, and what it waits for comes on top."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeVar

from granite_demo.errors import TimeLimitError
from granite_demo.types.comparison import Comparing
from granite_demo.types.events import Dropped, Queued

WAITING = (Queued, Dropped, Comparing)
"""Events of a request that does not generate yet."""
LOADING_SECONDS = 3600
"""What a request may wait for a model that is not ready."""
T = TypeVar("T")


class Deadline:
    """Until when the next event of a request must come, in the loop's time; ``at`` is None without a limit."""

    def __init__(self, seconds: int, loading: int) -> None:
        """``seconds``: of the answer; ``loading``: what a model that is not ready may take besides."""
        self.seconds = seconds
        self._loading = loading
        self.at = self._after(loading)

    def _after(self, waits: int) -> float | None:
        return asyncio.get_running_loop().time() + waits + self.seconds if self.seconds else None

    def hear(self, event: object) -> None:
        """What waits gets more time, and what no longer waits only that of an answer."""
        if isinstance(event, Queued):
            # Those ahead and one that is answered now have as much time as this one.
            self.at = self._after((event.ahead + 1) * self.seconds)
        elif isinstance(event, Comparing):
            self.at = self._after(self._loading)
        elif self.at is not None and not isinstance(event, WAITING):
            self.at = min(self.at, self._after(0) or self.at)


async def next_event(events: AsyncGenerator[T], deadline: Deadline) -> T | None:
    """The next of ``events``, None after the last. Raises TimeLimitError after ``deadline``."""
    try:
        async with asyncio.timeout_at(deadline.at) as limit:
            return await anext(events)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        if limit.expired():
            raise TimeLimitError(deadline.seconds) from None
        raise  # somebody else's
