"""Sends answers to a client. Each answer runs in its own task, which ends when the client disconnects."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from granite_demo.backend import Backend
from granite_demo.errors import EngineError
from granite_demo.types.events import Finish, ReasoningDelta, StreamEvent, TextDelta
from granite_demo.types.requests import GenerationRequest

Item = tuple[int, StreamEvent | None] | Exception
T = TypeVar("T")


MOST_PIECES = 4000
"""Pieces per second, of all answers together. More of them would delay the thread of the model."""
FEW = 8
"""Up to this many answers at the same time, each token is sent at once."""


class Pace:
    """The pause of an answer after each piece; it depends on the number of answers that are being sent."""

    def __init__(self) -> None:
        self.answers = 0

    async def rest(self) -> None:
        """Pause. The tokens that arrive in the pause are sent together."""
        if self.answers > FEW:
            await asyncio.sleep(self.answers / MOST_PIECES)


class ClientGoneError(Exception):
    """The client has disconnected."""


class Answers:
    """The events of several requests at the same time. ``close`` ends those that still run.

    Each request has a task: a cancelled caller does not interrupt the clean-up of an answer.
    """

    def __init__(self, backend: Backend, requests: Sequence[GenerationRequest], pace: Pace) -> None:
        self._pace = pace
        self._queue: asyncio.Queue[Item] = asyncio.Queue()
        self._ahead: deque[Item] = deque()
        self._tasks = [
            asyncio.create_task(self._run(backend, number, request)) for number, request in enumerate(requests)
        ]

    async def _run(self, backend: Backend, number: int, request: GenerationRequest) -> None:
        finished = False
        try:
            async with aclosing(backend.stream(request)) as events:
                async for event in events:
                    if isinstance(event, Finish) and event.reason == "stopped":
                        continue  # an error comes next
                    finished = isinstance(event, Finish)
                    self._queue.put_nowait((number, event))
            if not finished:
                raise EngineError("The answer ended before it was finished. Try again.")
            self._queue.put_nowait((number, None))
        except Exception as error:
            self._queue.put_nowait(error)

    async def begin(self, seconds: float) -> None:
        """Wait up to ``seconds`` for the first event. If it is an error, raise it."""
        if not self._tasks:
            return
        try:
            item = await asyncio.wait_for(self._queue.get(), seconds)
        except TimeoutError:
            return
        if isinstance(item, Exception):
            raise item
        self._ahead.append(item)

    async def events(self) -> AsyncGenerator[tuple[int, StreamEvent]]:
        """Yield (number of the answer, event) until all answers have ended. Raises the first error."""
        left = len(self._tasks)
        self._pace.answers += left
        try:
            while left:
                item = self._ahead.popleft() if self._ahead else await self._queue.get()
                if isinstance(item, Exception):
                    raise item
                number, event = item
                if event is None:
                    left -= 1
                    continue
                yield number, self._with_the_next(number, event)
                if self._queue.empty() and not self._ahead:
                    await self._pace.rest()
        finally:
            self._pace.answers -= len(self._tasks)

    def _with_the_next(self, number: int, event: StreamEvent) -> StreamEvent:
        """``event`` with the text that has arrived since: a slow reader gets fewer and longer pieces."""
        while isinstance(event, TextDelta | ReasoningDelta) and not self._ahead and not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, Exception) or item[0] != number or type(item[1]) is not type(event):
                self._ahead.append(item)
            else:
                event = replace(item[1], text=event.text + item[1].text)
        return event

    async def close(self) -> None:
        """Cancel the requests that still run, and wait for their end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. If the client disconnects, cancel ``work`` and raise ClientGoneError."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(EventSourceResponse):
    """Server-sent events. ``close`` is always awaited at the end, also after an error or before the first event."""

    def __init__(
        self, content: AsyncGenerator[Any], close: Callable[[], Coroutine[Any, Any, None]], ping: float
    ) -> None:
        """``ping``: seconds between the comments that keep a silent connection open."""
        # When the server stops, the engine ends each answer with an error message. The grace period is for these.
        super().__init__(content, ping=ping, sep="\n", shutdown_grace_period=4)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()
