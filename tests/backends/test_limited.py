"""Tests for the limits of a visitor: the queue, the token budget, and the time limit of an answer."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from granite_demo.access import Limits, visitor_of
from granite_demo.backends import limited as limits_module
from granite_demo.backends.limited import MINUTE, LimitedBackend
from granite_demo.chat.tools import parse_tools
from granite_demo.errors import InvalidRequestError, ModelError, TimeLimitError, VisitorLimitError
from granite_demo.types.comparison import Comparing
from granite_demo.types.events import Finish, Queued, StreamEvent, TextDelta, Timings, Usage
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.messages import Document, Message
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest
from granite_demo.types.stop import Stop, StoppedError
from tests.fakes import READY, FakeBackend

ASKED = GenerationRequest((Message("user", "Hi"),))
STOPPED = Finish("stopped", Usage(1, 1), Timings(0, 0))
Clock = Callable[[float], None]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return a function that advances the clock of the token budget by some seconds."""
    now = [1000.0]
    # time.monotonic itself is not replaced, because the event loop uses it.
    monkeypatch.setattr(limits_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


class Held(FakeBackend):
    """Answers with one word, then waits for ``gate``."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.began: list[str] = []

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        self.began.append(request.messages[-1].content)
        self.running += 1
        try:
            yield TextDelta("word", 1)
            await request.stop.guard(self.gate.wait())
        except StoppedError:
            yield STOPPED
        finally:
            self.running -= 1


async def drain(events: AsyncGenerator[Any]) -> list[Any]:
    async with aclosing(events):
        return [event async for event in events]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def named(text: str) -> GenerationRequest:
    return GenerationRequest((Message("user", text),))


@pytest.mark.parametrize(
    ("host", "visitor"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("2001:db8:1:2::9", "2001:db8:1::"),
        ("2001:db8:2::9", "2001:db8:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::1", "::"),
        ("testclient", "testclient"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_visitor_is_an_ipv4_address_or_an_ipv6_network(host: str | None, visitor: str) -> None:
    assert visitor_of(host) == visitor


async def test_without_limits_nothing_is_counted() -> None:
    backend = LimitedBackend(FakeBackend(), Limits())
    assert len(await asyncio.gather(*(drain(backend.stream(ASKED)) for _ in range(50)))) == 50


async def test_requests_run_wait_in_order_or_are_rejected() -> None:
    held = Held()
    one = LimitedBackend(held, Limits(running=2, waiting=2)).for_visitor("one")
    tasks = [asyncio.create_task(drain(one.stream(named(str(number))))) for number in range(4)]
    await settle()
    assert held.began == ["0", "1"]
    with pytest.raises(VisitorLimitError, match="You already have 4 requests running"):
        await drain(one.stream(named("4")))
    held.gate.set()
    events = await asyncio.gather(*tasks)
    assert held.began == ["0", "1", "2", "3"]
    assert [event for event in events[2] if isinstance(event, Queued)] == [Queued(1)]
    assert [event for event in events[3] if isinstance(event, Queued)][0] == Queued(2)
    assert one._visitor.line == []


async def test_visitors_do_not_wait_for_each_other() -> None:
    held = Held()
    both = LimitedBackend(held, Limits(running=1))
    first = asyncio.create_task(drain(both.for_visitor("one").stream(named("one"))))
    await settle()
    with pytest.raises(VisitorLimitError):
        await drain(both.for_visitor("one").stream(named("again")))
    second = asyncio.create_task(drain(both.for_visitor("two").stream(named("two"))))
    await settle()
    assert held.began == ["one", "two"]
    held.gate.set()
    await asyncio.gather(first, second)


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_cancelled_request_leaves_the_queue_and_the_next_one_runs(cancelled: int) -> None:
    held = Held()
    one = LimitedBackend(held, Limits(running=1, waiting=2)).for_visitor("one")
    tasks = [asyncio.create_task(drain(one.stream(named(str(number))))) for number in range(3)]
    await settle()
    tasks[cancelled].cancel()
    await settle()
    assert len(one._visitor.line) == 2
    held.gate.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in done] == [
        number == cancelled for number in range(3)
    ]
    assert held.began == [str(number) for number in range(3) if number != cancelled or cancelled == 0]
    assert (one._visitor.line, held.running) == ([], 0)


async def test_a_stream_may_be_closed_at_any_event() -> None:
    held = Held()
    one = LimitedBackend(held, Limits(running=1, waiting=1)).for_visitor("one")
    running, waiting, unused = (one.stream(named(name)) for name in ("running", "waiting", "unused"))
    assert isinstance(await anext(running), TextDelta)
    assert await anext(waiting) == Queued(1)
    await unused.aclose()
    await waiting.aclose()
    assert len(one._visitor.line) == 1
    await running.aclose()
    assert (one._visitor.line, held.running) == ([], 0)


async def test_a_failed_request_leaves_the_queue() -> None:
    backend = FakeBackend()
    backend.error = RuntimeError("gone")
    one = LimitedBackend(backend, Limits(running=1)).for_visitor("one")
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await drain(one.stream(ASKED))
    assert one._visitor.line == []


async def test_tokens_are_counted_for_a_minute(later: Clock) -> None:
    limited = LimitedBackend(FakeBackend(["a"] * 10), Limits(tokens=20))
    one = limited.for_visitor("one")
    for _ in range(2):
        await drain(one.stream(ASKED))
    with pytest.raises(VisitorLimitError, match="20 tokens .* the limit is 20"):
        await drain(limited.for_visitor("one").stream(ASKED))
    await drain(limited.for_visitor("two").stream(ASKED))
    later(MINUTE)
    await drain(one.stream(ASKED))


async def test_the_tokens_of_a_closed_answer_count(later: Clock) -> None:
    one = LimitedBackend(FakeBackend(["a"] * 10), Limits(tokens=3)).for_visitor("one")
    events = one.stream(ASKED)
    for _ in range(3):
        await anext(events)
    await events.aclose()
    with pytest.raises(VisitorLimitError, match="3 tokens"):
        await drain(one.stream(ASKED))


async def test_tokens_count_while_they_are_generated(later: Clock) -> None:
    one = LimitedBackend(FakeBackend(["a"] * 10), Limits(tokens=3)).for_visitor("one")
    events = one.stream(ASKED)
    for _ in range(3):
        await anext(events)
    with pytest.raises(VisitorLimitError, match="3 tokens"):
        await drain(one.stream(ASKED))
    await events.aclose()


async def test_scored_tokens_count_too(later: Clock) -> None:
    backend = FakeBackend()
    backend.scores = [ScoredToken(1, "a", -1.0)] * 5
    one = LimitedBackend(backend, Limits(tokens=5)).for_visitor("one")
    await drain(one.score(ScoreRequest("text")))
    with pytest.raises(VisitorLimitError):
        await drain(one.score(ScoreRequest("text")))


async def test_a_waiting_request_is_checked_again_before_it_runs(later: Clock) -> None:
    backend = FakeBackend(["a"] * 10, delay=0.001)
    one = LimitedBackend(backend, Limits(running=1, waiting=2, tokens=10)).for_visitor("one")
    done = await asyncio.gather(*(drain(one.stream(ASKED)) for _ in range(3)), return_exceptions=True)
    assert [isinstance(result, VisitorLimitError) for result in done] == [False, True, True]
    assert len(backend.requests) == 1


async def test_an_answer_that_reaches_its_time_limit_keeps_its_text() -> None:
    held = Held()
    one = LimitedBackend(held, Limits(running=1, seconds=1)).for_visitor("one")
    events: list[StreamEvent] = []
    with pytest.raises(TimeLimitError, match="after 1 seconds"):
        async for event in one.stream(ASKED):
            events.append(event)
    assert events == [TextDelta("word", 1), STOPPED]
    assert (one._visitor.line, held.running) == ([], 0)


async def test_a_stop_ends_a_running_answer_and_one_in_the_queue() -> None:
    held = Held()
    one = LimitedBackend(held, Limits(running=1, waiting=1)).for_visitor("one")
    runs, waits = (replace(ASKED, stop=Stop()) for _ in range(2))
    tasks = [asyncio.create_task(drain(one.stream(request))) for request in (runs, waits)]
    await settle()
    waits.stop.set()
    first, last = await asyncio.wait_for(tasks[1], 5)
    assert (first, last.reason, last.usage) == (Queued(1), "stopped", Usage(0, 0))
    assert not tasks[0].done()
    runs.stop.set()
    assert await asyncio.wait_for(tasks[0], 5) == [TextDelta("word", 1), STOPPED]
    assert (len(held.began), held.running, one._visitor.line) == (1, 0, [])


async def test_the_time_in_the_queue_of_the_engine_does_not_count() -> None:
    backend = FakeBackend()
    backend.queued, backend.first_delay = [Queued(1)], 1.2
    assert await drain(LimitedBackend(backend, Limits(seconds=1)).stream(ASKED))


async def test_the_time_to_load_a_model_does_not_count() -> None:
    backend = FakeBackend()
    backend.state, backend.first_delay = replace(READY, stage="loading"), 1.2
    assert await drain(LimitedBackend(backend, Limits(seconds=1)).stream(ASKED))


async def test_the_time_of_the_prefill_counts() -> None:
    backend = FakeBackend()
    backend.first_delay = 60
    one = LimitedBackend(backend, Limits(running=1, seconds=1)).for_visitor("one")
    with pytest.raises(TimeLimitError):
        await drain(one.stream(ASKED))
    assert one._visitor.line == []


async def test_a_wait_without_end_is_ended() -> None:
    backend = FakeBackend()
    backend.queued, backend.first_delay = [Queued(0)], 60
    with pytest.raises(TimeLimitError):
        await drain(LimitedBackend(backend, Limits(seconds=1)).stream(ASKED))


async def test_ten_prompt_tokens_count_as_one(later: Clock) -> None:
    backend = FakeBackend()
    backend.script = [TextDelta("a", 1), Finish("stop", Usage(200, 1), Timings(0, 0))]
    one = LimitedBackend(backend, Limits(tokens=21)).for_visitor("one")
    await drain(one.stream(ASKED))
    with pytest.raises(VisitorLimitError, match="21 tokens"):
        await drain(one.stream(ASKED))


async def test_the_prompt_of_a_closed_answer_counts_by_its_characters(later: Clock) -> None:
    one = LimitedBackend(FakeBackend(), Limits(tokens=11)).for_visitor("one")
    events = one.stream(named("x" * 400))
    await anext(events)
    await events.aclose()
    with pytest.raises(VisitorLimitError, match="11 tokens"):
        await drain(one.stream(ASKED))


async def test_the_timeout_error_of_the_backend_is_raised_unchanged() -> None:
    backend = FakeBackend()
    backend.error = TimeoutError("the other server")
    with pytest.raises(TimeoutError, match="the other server"):
        await drain(LimitedBackend(backend, Limits(seconds=60)).stream(ASKED))


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest((Message("user", "x" * 101),)),
        GenerationRequest((Message("user", "x" * 60), Message("assistant", "y" * 30), Message("user", "z" * 11))),
        GenerationRequest(prompt="x" * 101),
        GenerationRequest(prompt="x" * 50, suffix="y" * 51),
        GenerationRequest((Message("user", "x"),), documents=(Document("title", "x" * 101),)),
        GenerationRequest(
            (Message("user", "x"),),
            tools=parse_tools(
                '[{"name": "a", "parameters": {"type": "object", "properties": {"'
                + "x" * 64
                + '": {"type": "string"}}}}]'
            ),
        ),
    ],
    ids=["message", "messages", "prompt", "suffix", "document", "tool"],
)
async def test_texts_that_are_too_long_raise_before_the_backend_gets_them(request_: GenerationRequest) -> None:
    backend = FakeBackend()
    limited = LimitedBackend(backend, Limits(characters=100))
    with pytest.raises(InvalidRequestError, match="the limit is 100"):
        await drain(limited.stream(request_))
    with pytest.raises(InvalidRequestError, match="the limit is 100"):
        await limited.inspect(request_)
    assert not backend.requests
    assert not backend.inspected


async def test_scoring_and_comparing_have_the_same_limits() -> None:
    backend = FakeBackend()
    backend.comparison = [Comparing("loading")]
    limited = LimitedBackend(backend, Limits(running=1, characters=5))
    sides = LoadOptions("one"), LoadOptions("two")
    with pytest.raises(InvalidRequestError):
        await drain(limited.score(ScoreRequest("longer")))
    with pytest.raises(InvalidRequestError):
        await drain(limited.compare(CompareRequest("longer", *sides)))
    held = limited.compare(CompareRequest("short", *sides))
    await anext(held)
    with pytest.raises(VisitorLimitError):
        await drain(limited.compare(CompareRequest("short", *sides)))
    await held.aclose()


async def test_the_limit_of_running_answers_applies_to_inspected_prompts() -> None:
    class Slow(FakeBackend):
        async def inspect(self, request: GenerationRequest, parts: bool = False) -> None:
            await asyncio.sleep(0.01)

    one = LimitedBackend(Slow(), Limits(running=2)).for_visitor("one")
    done = await asyncio.gather(*(one.inspect(ASKED) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, VisitorLimitError) for result in done) == 3
    assert await one.inspect(ASKED) is None


async def test_old_visitors_are_forgotten(later: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "MAX_VISITORS", 10)
    limited = LimitedBackend(FakeBackend(), Limits(running=1, tokens=1))
    busy = limited.for_visitor("busy")
    held = busy.stream(ASKED)
    await anext(held)
    for number in range(100):
        limited.for_visitor(str(number))
    assert len(limited._visitors) <= 11
    with pytest.raises(VisitorLimitError):
        await drain(limited.for_visitor("busy").stream(ASKED))
    await held.aclose()


async def test_a_failed_model_is_tried_once_a_minute_for_all_visitors(later: Clock) -> None:
    backend = FakeBackend()
    limited = LimitedBackend(backend, Limits(reload=60))
    backend.state = replace(READY, stage="failed", detail="Broken.")
    await drain(limited.for_visitor("one").stream(ASKED))
    limited.start()
    assert not backend.started.is_set()
    with pytest.raises(ModelError, match="Broken. The last attempt was"):
        await drain(limited.for_visitor("two").stream(ASKED))
    later(60)
    limited.start()
    assert backend.started.is_set()
    backend.state = READY
    await drain(limited.stream(ASKED))


async def test_each_visitor_has_a_salt_of_their_own(backend: FakeBackend) -> None:
    limited = LimitedBackend(backend, Limits(own_prefixes=True))
    for visitor in ("ann", "bob", "ann"):
        await drain(limited.for_visitor(visitor).stream(ASKED))
    ann, bob, again = (request.sampling.salt for request in backend.requests)
    assert ann == again != bob
    assert "ann" not in ann
    assert backend.requests[0] == ASKED  # it changes no answer
    await drain(LimitedBackend(backend, Limits(own_prefixes=True)).for_visitor("ann").stream(ASKED))
    assert backend.requests[-1].sampling.salt != ann  # nobody outside this process can calculate it
    await drain(LimitedBackend(backend, Limits()).for_visitor("ann").stream(ASKED))
    assert not backend.requests[-1].sampling.salt


async def test_a_visitor_is_checked_before_the_work_for_a_request() -> None:
    backend = Held()
    limited = LimitedBackend(backend, Limits(running=1))
    ann = limited.for_visitor("ann")
    ann.check_visitor()
    async with aclosing(ann.stream(ASKED)) as events:
        await anext(events)
        with pytest.raises(VisitorLimitError, match="1 requests running"):
            limited.for_visitor("ann").check_visitor()
        limited.for_visitor("bob").check_visitor()
