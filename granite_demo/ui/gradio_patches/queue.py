"""Limits of Gradio's queue: the events of one visitor, and how long messages wait for a page that does not read them.

Gradio 6.31 limits only all visitors together. It keeps the messages of the last 2,000 pages without a time limit, also
those of pages that never read them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any

from fastapi import HTTPException
from gradio import Blocks
from gradio.queueing import Event

from granite_demo.access import visitor_of

SENDING_SECONDS = 60.0
"""How long a page that has read a message can take to receive it: its connection can be slow."""
MAX_UNREAD = 1_000
"""Messages of one page. An answer has twelve a second."""
TOO_MANY = "You already have {} requests running. Wait for one of them, or stop it."


class Mailbox(asyncio.Queue[Any]):
    """The messages for one page. ``gone`` is called when the page does not read them."""

    def __init__(self, seconds: float, gone: Callable[[], Any]) -> None:
        super().__init__()
        self._seconds = seconds
        self._gone = gone
        self._readers = 0
        self._since = time.monotonic()
        self._check()

    async def get(self) -> Any:
        """See ``asyncio.Queue``."""
        self._readers += 1
        try:
            return await super().get()
        finally:
            self._readers -= 1
            # A page that has read a message is there, and can be slow to receive it.
            self._since = time.monotonic() + max(0.0, SENDING_SECONDS - self._seconds)

    def put_nowait(self, item: Any) -> None:
        """See ``asyncio.Queue``."""
        if self.empty() and not self._readers:
            self._since = max(self._since, time.monotonic())
        super().put_nowait(item)
        if self.qsize() > MAX_UNREAD:
            self._gone()

    def _check(self) -> None:
        left = self._since + self._seconds - time.monotonic()
        if self._readers or left > 0:
            asyncio.get_running_loop().call_later(max(left, 1.0), self._check)
        else:
            self._gone()


class Mailboxes(dict[str, asyncio.Queue[Any]]):
    """The mailbox of each page, by its session. One that nobody reads is removed, and the events of its page end."""

    def __init__(self, seconds: float, end: Callable[[str], Awaitable[None]]) -> None:
        """``end`` ends the events of a session."""
        super().__init__()
        self._seconds = seconds
        self._end = end
        self._ending: set[asyncio.Future[None]] = set()

    def __setitem__(self, session: str, mailbox: asyncio.Queue[Any]) -> None:
        super().__setitem__(session, Mailbox(self._seconds, lambda: self._remove(session)))

    def _remove(self, session: str) -> None:
        if self.pop(session, None) is not None:
            # The event loop keeps only a weak reference to a task.
            ending = asyncio.ensure_future(self._end(session))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


def limit_queue(blocks: Blocks, most: int, unread: float) -> None:
    """Accept at most ``most`` events of one visitor at a time in the queue of ``blocks``; 0: no limit.

    The events of a page that does not read its messages end after ``unread`` seconds.
    """
    queue: Any = blocks._queue
    push = queue.push

    async def limited(body: Any, request: Any, username: str | None) -> Any:
        if most and _events_of(queue, _visitor(request)) >= most:
            raise HTTPException(429, TOO_MANY.format(most), {"retry-after": "5"})
        return await push(body=body, request=request, username=username)

    async def end(session: str) -> None:
        await queue.clean_events(session_hash=session)

    queue.push = limited
    queue.pending_messages_per_session = Mailboxes(unread, end)


def _events_of(queue: Any, visitor: str) -> int:
    waiting = chain.from_iterable(line.queue for line in queue.event_queue_per_concurrency_id.values())
    running = chain.from_iterable(filter(None, queue.active_jobs))
    events: chain[Event] = chain(waiting, running)
    return sum(_visitor(event.request) == visitor for event in events)


def _visitor(request: Any) -> str:
    return visitor_of(request.client.host if request.client else None)
