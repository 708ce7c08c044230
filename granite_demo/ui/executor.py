"""The threads for the CPU work of the page: few, not those of the API, and the visitors take turns on them."""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from granite_demo.errors import VisitorLimitError

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 1
"""More would not be faster, because Python runs one at a time. With two, another visitor waited longer under attack."""
MAX_CALLS = 512
"""Calls of one visitor that wait: more than there are events, whose number has limits of its own."""
WAIT_SECONDS = 20.0
"""From a call to its result. What runs on these threads is bounded, so most of this is the wait for a thread."""
BUSY = "The server is busy. Try again in a moment."

visitor: ContextVar[str] = ContextVar("visitor", default="")
"""The address of the visitor whose event runs; see ``access.visitor_of``."""


class FairExecutor:
    """Runs functions in threads. Each visitor has a line, and the first call of each line runs in turn.

    So a visitor with many calls delays the calls of another visitor by one call for each thread.
    """

    def __init__(self, threads: int = THREADS, waiting: int = MAX_CALLS, seconds: float = WAIT_SECONDS) -> None:
        self._waiting = waiting
        self._seconds = seconds
        self._lines: OrderedDict[str, deque[Callable[[], None]]] = OrderedDict()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(threads, "page")

    async def run(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Return the result of ``function``, which is called in a thread with a copy of the context.

        Raises what it raises, and VisitorLimitError where it does not begin because the visitor has too many calls,
        or has no result in time.
        """
        result: Future[T] = Future()
        call = partial(copy_context().run, _fulfil, result, partial(function, *args, **options))
        with self._lock:
            line = self._lines.setdefault(visitor.get(), deque())
            if len(line) >= self._waiting:
                raise VisitorLimitError(BUSY)
            line.append(call)
        self._threads.submit(self._run_next)
        try:
            async with asyncio.timeout(self._seconds) as limit:
                return await asyncio.wrap_future(result)
        except TimeoutError:
            if not limit.expired():
                raise  # of the function itself
            raise VisitorLimitError(BUSY) from None

    def _run_next(self) -> None:
        with self._lock:
            name, line = next(iter(self._lines.items()))
            call = line.popleft()
            self._lines.move_to_end(name)
            if not line:
                del self._lines[name]
        call()


def _fulfil(result: Future[Any], function: Callable[[], Any]) -> None:
    if not result.set_running_or_notify_cancel():
        return  # nobody waits for it
    try:
        result.set_result(function())
    except BaseException as error:
        result.set_exception(error)


_page = FairExecutor()


async def off_loop(function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run ``function`` in a thread of the page, in turn with other visitors. See ``FairExecutor.run``."""
    return await _page.run(function, *args, **options)
