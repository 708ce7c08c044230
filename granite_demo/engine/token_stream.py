"""Streams of results from the engine's thread to the asyncio task of a request."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Generic

from granite_demo.engine.protocol import T
from granite_demo.errors import GraniteDemoError
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token


class Cancelled(BaseException):
    """Raised on the model's thread when the request was cancelled. It never leaves the engine."""


@dataclass(frozen=True, slots=True)
class _End:
    """The last item of a stream."""

    error: GraniteDemoError | None


class TokenStream(Generic[T]):
    """The results of one request. The model's thread puts tokens or measured values; the event loop iterates over them.

    The queue has at most the ``max_tokens`` tokens of the request, so a slow reader never blocks the model.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._queue: asyncio.Queue[T | Queued | _End] = asyncio.Queue()
        self._end: GraniteDemoError | None = None
        self._cancelled = threading.Event()

    def cancel(self, error: GraniteDemoError | None = None) -> None:
        """Cancel the request. A reader that still reads gets ``error``. Can be called from any thread."""
        self._end = error
        self._cancelled.set()

    def check(self) -> None:
        """Raise Cancelled if the request was cancelled. Called on the model's thread."""
        if self._cancelled.is_set():
            raise Cancelled

    @property
    def cancelled(self) -> bool:
        """Whether the request was cancelled."""
        return self._cancelled.is_set()

    def put(self, item: T | Queued) -> None:
        """Pass one item, or the position in the queue. Called on the model's thread. Raises Cancelled."""
        self.check()
        self._send(item)

    def finish(self, error: GraniteDemoError | None = None) -> None:
        """End the stream, with an error if there was one. Called on the model's thread."""
        with contextlib.suppress(Cancelled):
            self._send(_End(error or self._end))

    def _send(self, item: T | Queued | _End) -> None:
        try:
            self.loop.call_soon_threadsafe(self.accept, item)
        except RuntimeError:  # the event loop is closed, so there is no reader
            raise Cancelled from None

    def accept(self, item: T | Queued | _End) -> None:
        """Add an item to the queue. Called on the event loop; see ``deliver``."""
        self._queue.put_nowait(item)

    async def read(self) -> AsyncGenerator[T | Queued]:
        """Yield the items as they arrive. Closing the generator cancels the request. Raises the request's error."""
        try:
            while not isinstance(item := await self._queue.get(), _End):
                yield item
        finally:
            self.cancel()
        if item.error:
            raise item.error


def deliver(tokens: Sequence[tuple[TokenStream[Token], Token]]) -> None:
    """Pass the tokens of one step and wake each event loop once. Called on the model's thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream[Token], Token]]] = {}
    for stream, token in tokens:
        by_loop.setdefault(stream.loop, []).append((stream, token))
    for loop, batch in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the event loop is closed, so there is no reader
            loop.call_soon_threadsafe(_accept, batch)


def _accept(batch: list[tuple[TokenStream[Token], Token]]) -> None:
    for stream, token in batch:
        stream.accept(token)
