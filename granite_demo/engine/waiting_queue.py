"""The line of requests that wait for an engine: first come, first served, of limited length."""

import contextlib
import threading
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Generic, Protocol, TypeVar

from granite_demo.engine.token_stream import Cancelled, TokenStream
from granite_demo.errors import EngineBusyError
from granite_demo.types.events import Queued

MAX_WAITING = 64
"""Requests that may wait: more would wait longer than anybody does."""


class HasStream(Protocol):
    """Anything that waits on behalf of a reader."""

    @property
    def stream(self) -> TokenStream[Any]:
        """Where its reader is told its place."""
        ...


R = TypeVar("R", bound=HasStream)


class WaitingQueue(Generic[R]):
    """Tells each request how many are ahead of it. Every method may be called from any thread."""

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self.limit = limit
        self._line: list[R] = []
        self._told: list[R] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._line)

    def join(self, request: R) -> None:
        """Add a request at the end. Raises EngineBusyError when the line is full."""
        with self._lock:
            self._drop_cancelled()
            if len(self._line) >= self.limit:
                raise EngineBusyError(len(self._line))
            self._line.append(request)

    def take(self, fits: Callable[[R], bool] = lambda request: True) -> R | None:
        """Remove and return the first request if it ``fits``; None otherwise. Cancelled ones are dropped.

        The others are not overtaken by a later request that would fit: a large one would never have its turn.
        """
        with self._lock:
            self._drop_cancelled()
            if not self._line or not fits(self._line[0]):
                return None
            return self._line.pop(0)

    def announce(self) -> None:
        """Tell the waiting requests their places, where those changed. For the engine, after it took what it could."""
        with self._lock:
            self._drop_cancelled()
            for ahead, (waiting, told) in enumerate(zip_longest(self._line, self._told[: len(self._line)])):
                if waiting is not told:
                    with contextlib.suppress(Cancelled):
                        waiting.stream.put(Queued(ahead))
            self._told = list(self._line)

    def clear(self) -> list[R]:
        """Remove and return all requests."""
        with self._lock:
            line, self._line = self._line, []
        return line

    def _drop_cancelled(self) -> None:
        self._line = [waiting for waiting in self._line if not waiting.stream.cancelled]
