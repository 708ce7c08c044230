"""The signal to end an answer early. Uses the standard library only."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """A ``Stop`` ended a wait."""


class Stop:
    """A part of a request to a backend. ``set`` ends the answer to the request soon.

    The stream then yields the text that was held back and a Finish. It cannot do so when a reader closes it, because a
    closed generator yields nothing. Several requests can share one stop.
    """

    def __init__(self) -> None:
        self._set = False
        self._calls: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Return whether the answer must end."""
        return self._set

    def set(self) -> None:
        """End the answer. Can be called from any thread."""
        self._set = True
        for call in list(self._calls):
            call()

    @contextlib.contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        """In this context, ``set`` calls ``call`` on its own thread. If the stop is set, it is called immediately."""
        self._calls.append(call)
        try:
            if self._set:
                call()
            yield
        finally:
            self._calls.remove(call)

    async def guard(self, waits: Awaitable[T]) -> T:
        """Return the result of ``waits``. Raises StoppedError if the stop cancels it.

        A result that is available without a wait is returned, also after the stop.
        """
        loop = asyncio.get_running_loop()

        def expire() -> None:
            with contextlib.suppress(RuntimeError):  # the wait is over
                scope.reschedule(loop.time())

        def interrupt() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(expire)

        self._calls.append(interrupt)  # not ``calling``: each token passes here
        try:
            async with asyncio.timeout(0 if self._set else None) as scope:
                return await waits
        except TimeoutError:
            if scope.expired():
                raise StoppedError from None
            raise  # another timeout
        finally:
            self._calls.remove(interrupt)
