"""The queue of requests."""

import asyncio
from dataclasses import dataclass

import pytest

from granite_demo.engine.token_stream import TokenStream
from granite_demo.engine.waiting_queue import WaitingQueue
from granite_demo.errors import EngineBusyError
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token


@dataclass(eq=False)
class Request:
    stream: TokenStream[Token]
    size: int = 1


class Line(WaitingQueue[Request]):
    """A queue that makes its own requests."""

    def add(self, size: int = 1) -> Request:
        request = Request(TokenStream(asyncio.get_running_loop()), size)
        self.join(request)
        return request


async def announced(request: Request) -> list[int]:
    """Return the positions that were sent to a request, oldest first."""
    request.stream.finish()
    places = []
    async for item in request.stream.read():
        assert isinstance(item, Queued)
        places.append(item.ahead)
    return places


async def test_first_come_first_served() -> None:
    line = Line()
    requests = [line.add() for _ in range(3)]
    assert len(line) == 3
    assert [line.take() for _ in range(4)] == [*requests, None]
    assert len(line) == 0


async def test_a_full_queue_refuses_and_says_how_many_wait() -> None:
    line = Line(2)
    line.add()
    line.add()
    with pytest.raises(EngineBusyError, match="2 requests are waiting") as caught:
        line.add()
    assert caught.value.waiting == 2
    assert len(line) == 2


async def test_cancelled_requests_are_dropped() -> None:
    line = Line(2)
    first, second = line.add(), line.add()
    first.stream.cancel()
    third = line.add()
    assert [line.take(), line.take(), line.take()] == [second, third, None]


async def test_no_request_overtakes_the_first() -> None:
    line = Line()
    large, small = line.add(size=10), line.add(size=1)
    assert line.take(lambda request: request.size < 5) is None
    assert line.take(lambda request: request.size < 50) is large
    assert line.take(lambda request: request.size < 5) is small


async def test_a_cancelled_first_request_does_not_block_the_next() -> None:
    line = Line()
    large, small = line.add(size=10), line.add(size=1)
    large.stream.cancel()
    assert line.take(lambda request: request.size < 5) is small


async def test_only_changed_positions_are_announced() -> None:
    line = Line()
    first, second, third = (line.add() for _ in range(3))
    line.announce()
    line.announce()
    line.take()
    line.announce()
    fourth = line.add()
    line.announce()
    assert [await announced(request) for request in (first, second, third, fourth)] == [[0], [1, 0], [2, 1], [2]]


async def test_requests_after_a_cancelled_one_move_up() -> None:
    line = Line()
    first, second, third = (line.add() for _ in range(3))
    line.announce()
    second.stream.cancel()
    line.announce()
    assert len(line) == 2
    assert [await announced(request) for request in (first, third)] == [[0], [2, 1]]


async def test_a_reader_without_a_loop_does_not_stop_the_announcement() -> None:
    line = Line()
    loop = asyncio.new_event_loop()
    line.join(Request(TokenStream(loop)))
    loop.close()
    second = line.add()
    line.announce()
    assert await announced(second) == [1]


async def test_clear_returns_all_requests() -> None:
    line = Line()
    requests = [line.add(), line.add()]
    assert line.clear() == requests
    assert (len(line), line.take()) == (0, None)
