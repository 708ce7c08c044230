"""The queue of requests that wait for an engine: first come, first served, with a limited length."""

import contextlib
import threading
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Generic, Protocol, TypeVar

from granite_demo.engine.token_stream import Cancelled, TokenStream
from granite_demo.errors import EngineBusyError
from granite_demo.types.events import Queued

MAX_WAITING = 64
"""The maximum number of waiting requests. More would wait longer than users do."""


class HasStream(Protocol):
    """A request with a stream."""

    @property
    def stream(self) -> TokenStream[Any]:
        """The stream that gets the position in the queue."""
        ...


R = TypeVar("R", bound=HasStream)


class WaitingQueue(Generic[R]):
    """Sends each request the number of requests before it. All methods can be called from any thread."""

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self.limit = limit
        self._line: list[R] = []
        self._announced: list[R] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._line)

    def join(self, request: R) -> None:
        """Add a request at the end. Raises EngineBusyError if the queue is full."""
        with self._lock:
            self._drop_cancelled()
            if len(self._line) >= self.limit:
                raise EngineBusyError(len(self._line))
            self._line.append(request)

    def take(self, fits: Callable[[R], bool] = lambda request: True) -> R | None:
        """Remove and return the first request if it ``fits``, otherwise None. Cancelled requests are dropped.

        A later request that fits never overtakes the first one, because a large request would then wait forever.
        """
        with self._lock:
            self._drop_cancelled()
            if not self._line or not fits(self._line[0]):
                return None
            return self._line.pop(0)

    def announce(self) -> None:
        """Send the requests their changed positions. The engine calls this after it has taken requests."""
        with self._lock:
            self._drop_cancelled()
            for ahead, (waiting, before) in enumerate(zip_longest(self._line, self._announced[: len(self._line)])):
                if waiting is not before:
                    with contextlib.suppress(Cancelled):
                        waiting.stream.put(Queued(ahead))
            self._announced = list(self._line)

    def clear(self) -> list[R]:
        """Remove and return all requests."""
        with self._lock:
            line, self._line = self._line, []
        return line

    def _drop_cancelled(self) -> None:
        self._line = [waiting for waiting in self._line if not waiting.stream.cancelled]
