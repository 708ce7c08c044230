"""The bridge from the engine's thread to the asyncio task of one request."""

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
    """Raised inside the model's thread when nobody wants the tokens any more. Never leaves the engine."""


@dataclass(frozen=True, slots=True)
class _End:
    """The last that a stream carries."""

    error: GraniteDemoError | None


class TokenStream(Generic[T]):
    """One request's way back: the model's thread puts tokens in, or what was measured; the event loop iterates over it.

    The queue holds at most the request's ``max_tokens`` tokens, so a slow reader never holds up the model.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._queue: asyncio.Queue[T | Queued | _End] = asyncio.Queue()
        self._end: GraniteDemoError | None = None
        self._cancelled = threading.Event()

    def cancel(self, error: GraniteDemoError | None = None) -> None:
        """Ask the model's thread to stop; a reader that still listens gets ``error``. Callable from any thread."""
        self._end = error
        self._cancelled.set()

    def check(self) -> None:
        """Raise Cancelled if the request was cancelled. Called often from the model's thread."""
        if self._cancelled.is_set():
            raise Cancelled

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the tokens any more."""
        return self._cancelled.is_set()

    def put(self, item: T | Queued) -> None:
        """Hand over one item or a place in the line. Called from the model's thread; raises Cancelled."""
        self.check()
        self._send(item)

    def finish(self, error: GraniteDemoError | None = None) -> None:
        """End the stream, with the error that ended it if there was one. Called from the model's thread."""
        with contextlib.suppress(Cancelled):
            self._send(_End(error or self._end))

    def _send(self, item: T | Queued | _End) -> None:
        try:
            self.loop.call_soon_threadsafe(self.accept, item)
        except RuntimeError:  # The event loop is closed: there is no reader left.
            raise Cancelled from None

    def accept(self, item: T | Queued | _End) -> None:
        """Take an item. Called from the event loop; see ``deliver``."""
        self._queue.put_nowait(item)

    async def read(self) -> AsyncGenerator[T | Queued]:
        """Yield the items as they come. Whoever closes it cancels the request. Raises the error that ended that."""
        try:
            while not isinstance(item := await self._queue.get(), _End):
                yield item
        finally:
            self.cancel()
        if item.error:
            raise item.error


def deliver(tokens: Sequence[tuple[TokenStream[Token], Token]]) -> None:
    """Hand over the tokens of one step, waking each event loop once. Called from the model's thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream[Token], Token]]] = {}
    for stream, token in tokens:
        by_loop.setdefault(stream.loop, []).append((stream, token))
    for loop, batch in by_loop.items():
        with contextlib.suppress(RuntimeError):  # The loop is closed: there is no reader left.
            loop.call_soon_threadsafe(_accept, batch)


def _accept(batch: list[tuple[TokenStream[Token], Token]]) -> None:
    for stream, token in batch:
        stream.accept(token)
