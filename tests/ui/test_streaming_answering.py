"""One request as the page sees it: snapshots that grow, and errors that are notes."""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import pytest

from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.types.events import Finish, Queued, StreamEvent, TextDelta, Timings, ToolCalled, Usage
from granite_demo.types.messages import ToolCall
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.stop import Stop
from granite_demo.ui.streaming import Snapshot, Visitors, side_by_side, snapshots
from tests.fakes import FakeBackend

REQUEST = GenerationRequest(prompt="Once")
Shot = tuple[str, str, str]
"""(text, note, kind of the note) of a snapshot"""

CANARY = "hf_secret-canary"


def seen(shot: Snapshot) -> Shot:
    return shot.answer.text, shot.note, shot.kind


async def collect(backend: FakeBackend, stop_at: str | None = None) -> list[Shot]:
    """All snapshots; the reader stops the answer on seeing the text ``stop_at``."""
    stop = Stop()
    shots: list[Shot] = []
    async for shot in snapshots(backend, lambda: REQUEST, stop):
        shots.append(seen(shot))
        if shots[-1][0] == stop_at:
            stop.set()
    return shots


async def first_of_a_wait(backend: FakeBackend) -> Shot:
    """What shows while nothing comes."""
    backend.first_delay = 60
    async with aclosing(snapshots(backend, lambda: REQUEST, Stop())) as shots:
        return seen(await anext(shots))


async def test_snapshots_grow_and_end_with_the_figures(backend: FakeBackend) -> None:
    backend.delay = 0.15
    shots = await collect(backend)
    texts = [text for text, _, _ in shots]
    assert len(set(texts)) >= 2
    assert texts == sorted(texts, key=len)
    assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))
    assert {kind for _, _, kind in shots} == {"note"}
    assert "finished" not in shots[0][1]
    assert shots[-1][:2] == ("Hello world!", "3 tokens · 0.10 s to first token · 13.3 tokens/s · finished (stop)")
    assert backend.requests == [REQUEST]
    assert backend.running == 0


async def test_the_wait_for_the_first_token_shows(backend: FakeBackend) -> None:
    assert await first_of_a_wait(backend) == ("", "Waiting for the first token", "note")


async def test_the_wait_for_the_model_shows_its_progress(backend: FakeBackend) -> None:
    backend.state = ModelStatus("fake", "downloading", 0.25, "23 of 93 MB")
    expected = ("", "Getting the model ready: downloading 25% 23 of 93 MB", "note")
    assert await first_of_a_wait(backend) == expected


async def test_the_wait_for_the_model_without_known_progress(backend: FakeBackend) -> None:
    backend.state = ModelStatus("fake", "loading")
    assert (await first_of_a_wait(backend))[1] == "Getting the model ready: loading"


async def test_a_place_in_line_shows_whatever_the_model_does(backend: FakeBackend) -> None:
    backend.queued = [Queued(2)]
    backend.state = ModelStatus("fake", "loading")
    assert (await first_of_a_wait(backend))[1] == "Waiting: 2 requests ahead"


async def test_an_answer_shows_its_own_figures_whatever_the_model_does(backend: FakeBackend) -> None:
    backend.state = ModelStatus("fake", "loading")
    assert "finished (stop)" in (await collect(backend))[-1][1]


async def test_an_expected_error_is_shown_under_the_text_so_far(backend: FakeBackend) -> None:
    backend.error = EngineError("The model ran out of memory. Use a shorter prompt.")
    shots = await collect(backend)
    assert shots[-1] == ("Hello world!", "The model ran out of memory. Use a shorter prompt.", "error")
    assert [kind for _, _, kind in shots].count("error") == 1


async def test_an_unforeseen_error_is_a_number_that_the_log_explains(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.error = RuntimeError(CANARY)
    shots = await collect(backend)
    text, note, kind = shots[-1]
    assert (text, kind) == ("Hello world!", "error")
    number = re.search(r"Error ID: ([0-9a-f]{8})\.$", note)
    assert number is not None
    assert CANARY not in str(shots)
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert number[1] in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is backend.error


async def test_each_unforeseen_error_has_its_own_number(backend: FakeBackend) -> None:
    backend.error = RuntimeError(CANARY)
    notes = {(await collect(backend))[-1][1] for _ in range(3)}
    assert len(notes) == 3


async def test_an_invalid_request_is_an_error(backend: FakeBackend) -> None:
    def build() -> GenerationRequest:
        raise InvalidRequestError("Seed must be a whole number.")

    shots = [seen(shot) async for shot in snapshots(backend, build, Stop())]
    assert shots == [("", "Seed must be a whole number.", "error")]
    assert backend.requests == []


async def test_closing_cancels_the_request(backend: FakeBackend) -> None:
    backend.delay = 60
    async with aclosing(snapshots(backend, lambda: REQUEST, Stop())) as shots:
        assert seen(await anext(shots))[0] == "Hello"
        assert backend.running == 1
    assert backend.running == 0


async def test_stop_keeps_the_text_and_ends_the_request(backend: FakeBackend) -> None:
    backend.delay = 60
    shots = await asyncio.wait_for(collect(backend, stop_at="Hello"), 20)
    assert shots[-1][0] == "Hello"
    assert re.fullmatch(r"1 token · [\d.]+ s to first token · stopped", shots[-1][1])
    assert {kind for _, _, kind in shots} == {"note"}
    assert backend.running == 0


CUT_CALL = ToolCall("write", '{"name":"write"', "The call was cut off before its end.")
REST: list[StreamEvent] = [
    TextDelta(" <", 2),
    ToolCalled(CUT_CALL),
    Finish("stopped", Usage(5, 2), Timings(0.1, 0.2), 7, (3, 4)),
]


async def test_stop_shows_what_was_held_back_and_keeps_what_made_it(backend: FakeBackend) -> None:
    backend.delay, backend.held = 60, REST
    stop = Stop()
    shots = []
    async for each in snapshots(backend, lambda: REQUEST, stop):
        shots.append(each)
        stop.set()
    shot = shots[-1]
    assert (shot.answer.text, shot.answer.calls) == ("Hello <", [CUT_CALL])
    assert shot.note == "2 tokens · 0.10 s to first token · 10.0 tokens/s · stopped · seed 7"
    assert shot.answer.finish == REST[-1]


async def test_an_error_shows_what_was_held_back(backend: FakeBackend) -> None:
    backend.error, backend.held = EngineError("No more memory."), REST
    shot = [each async for each in snapshots(backend, lambda: REQUEST, Stop())][-1]
    assert (shot.answer.text, shot.kind, shot.answer.finish) == ("Hello world! <", "error", REST[-1])


async def test_stop_before_the_first_token(backend: FakeBackend) -> None:
    backend.first_delay = 60
    shots = await asyncio.wait_for(collect(backend, stop_at=""), 20)
    assert shots[-1] == ("", "stopped", "note")
    assert backend.running == 0


async def test_stop_at_the_very_end_shows_the_end(backend: FakeBackend) -> None:
    backend.delay = 0.05
    stop = Stop()
    shots: list[Shot] = []
    async for shot in snapshots(backend, lambda: REQUEST, stop):
        shots.append(seen(shot))
        await asyncio.sleep(0.5)  # a slow page: meanwhile the rest arrives
        stop.set()
    assert shots[0][0] == "Hello"
    assert shots[-1][0] == "Hello world!"
    assert "finished (stop)" in shots[-1][1]


def test_stop_reaches_all_requests_of_one_visitor_only() -> None:
    visitors = Visitors()
    with visitors.answering("a") as first, visitors.answering("a") as second, visitors.answering("b") as other:
        assert visitors.stop("a")
        assert [event.is_set() for event in (first, second, other)] == [True, True, False]


def test_an_ended_request_is_not_there_to_stop() -> None:
    visitors = Visitors()
    with visitors.answering("a") as first:
        with visitors.answering("a") as second:
            pass
        assert visitors.stop("a")
        assert (first.is_set(), second.is_set()) == (True, False)
    assert not visitors.stop("a")
    with visitors.answering("a") as next_one:
        assert not next_one.is_set()


def test_a_request_that_fails_is_forgotten() -> None:
    visitors = Visitors()
    with suppress(ZeroDivisionError), visitors.answering("a"):
        raise ZeroDivisionError
    assert not visitors.stop("a")


def streams(*backends: FakeBackend, stop: Stop) -> list[Callable[[], Any]]:
    def one(backend: FakeBackend) -> Callable[[], Any]:
        return lambda: snapshots(backend, lambda: GenerationRequest(prompt="Once"), stop)

    return [one(backend) for backend in backends]


async def texts(backends: Sequence[FakeBackend], together: bool) -> list[tuple[str | None, ...]]:
    stop = Stop()
    return [
        tuple(shot.answer.text if shot else None for shot in latest)
        async for latest in side_by_side(streams(*backends, stop=stop), stop, together)
    ]


def two(delay: float = 0.1) -> tuple[FakeBackend, FakeBackend]:
    return FakeBackend(["a"] * 4, delay), FakeBackend(["b"] * 4, delay)


async def test_both_grow_at_the_same_time() -> None:
    states = await texts(two(), together=True)
    assert any(a and b and len(a) < 4 and len(b) < 4 for a, b in states)
    assert states[-1] == ("aaaa", "bbbb")


async def test_one_after_the_other() -> None:
    states = await texts(two(), together=False)
    assert all(not b or a == "aaaa" for a, b in states)
    assert states[0][1] is None
    assert states[-1] == ("aaaa", "bbbb")


@pytest.mark.parametrize("together", [True, False])
async def test_an_error_on_one_side_leaves_the_other_alone(together: bool) -> None:
    bad, good = two(0)
    bad.error = EngineError("Out of memory.")
    stop = Stop()
    latest = [state async for state in side_by_side(streams(bad, good, stop=stop), stop, together)][-1]
    assert [(shot.answer.text, shot.kind) for shot in latest if shot] == [("aaaa", "error"), ("bbbb", "note")]


@pytest.mark.parametrize("together", [True, False])
async def test_closing_ends_both(together: bool) -> None:
    backends = two(60)
    stop = Stop()
    async with aclosing(side_by_side(streams(*backends, stop=stop), stop, together)) as states:
        await anext(states)
        await asyncio.sleep(0.1)
        assert [backend.running for backend in backends] == [1, int(together)]
    assert [backend.running for backend in backends] == [0, 0]


async def test_stop_spares_the_second_side() -> None:
    backends = two(0.05)
    stop = Stop()
    async for latest in side_by_side(streams(*backends, stop=stop), stop, together=False):
        if latest[0] and latest[0].answer.text:
            stop.set()
    assert backends[1].requests == []
    assert backends[0].running == 0
