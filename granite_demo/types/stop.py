"""The wish of a reader that an answer ends early. Standard library only."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """A wait was ended by its ``Stop``."""


class Stop:
    """Goes to a backend with a request; ``set`` ends that request's answer within a moment.

    The stream then yields what it held back and a Finish, as it cannot when a reader closes it: a closed generator
    yields nothing more. One stop may serve several requests.
    """

    def __init__(self) -> None:
        self._set = False
        self._calls: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Whether the answer is to end."""
        return self._set

    def set(self) -> None:
        """End the answer. Callable from any thread."""
        self._set = True
        for call in list(self._calls):
            call()

    @contextlib.contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        """Make ``set`` call ``call``, on its own thread, inside of this context; at once if the stop is set."""
        self._calls.append(call)
        try:
            if self._set:
                call()
            yield
        finally:
            self._calls.remove(call)

    async def guard(self, waits: Awaitable[T]) -> T:
        """Return the result of ``waits``, which a stop cancels. Raises StoppedError then.

        What is there without a wait is returned, also after the stop.
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
            raise  # somebody else's
        finally:
            self._calls.remove(interrupt)
