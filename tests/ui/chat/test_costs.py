"""Two answers at once: how they are streamed, what they cost, and how they differ."""

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from granite_demo.chat.answer import Answer
from granite_demo.errors import EngineError
from granite_demo.types.events import Finish, ReasoningDelta, TextDelta, Timings, Usage
from granite_demo.types.requests import GenerationRequest
from granite_demo.ui.chat.costs import costs_html, difference_words
from granite_demo.ui.streaming import Snapshot, side_by_side, snapshots
from tests.fakes import FakeBackend


def streams(*backends: FakeBackend, stop: threading.Event) -> list[Callable[[], Any]]:
    def one(backend: FakeBackend) -> Callable[[], Any]:
        return lambda: snapshots(backend, lambda: GenerationRequest(prompt="Once"), stop)

    return [one(backend) for backend in backends]


async def texts(backends: Sequence[FakeBackend], together: bool) -> list[tuple[str | None, ...]]:
    stop = threading.Event()
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
    stop = threading.Event()
    latest = [state async for state in side_by_side(streams(bad, good, stop=stop), stop, together)][-1]
    assert [(shot.answer.text, shot.kind) for shot in latest if shot] == [("aaaa", "error"), ("bbbb", "note")]


@pytest.mark.parametrize("together", [True, False])
async def test_closing_ends_both(together: bool) -> None:
    backends = two(60)
    stop = threading.Event()
    async with aclosing(side_by_side(streams(*backends, stop=stop), stop, together)) as states:
        await anext(states)
        await asyncio.sleep(0.1)
        assert [backend.running for backend in backends] == [1, int(together)]
    assert [backend.running for backend in backends] == [0, 0]


async def test_stop_spares_the_second_side() -> None:
    backends = two(0.05)
    stop = threading.Event()
    async for latest in side_by_side(streams(*backends, stop=stop), stop, together=False):
        if latest[0] and latest[0].answer.text:
            stop.set()
    assert backends[1].requests == []
    assert backends[0].running == 0


def shot(text: str, tokens: int, seconds: float, thinking: int = 0) -> Snapshot:
    answer = Answer()
    thoughts = [ReasoningDelta("Hmm", thinking)] if thinking else []
    finish = Finish("stop", Usage(5, tokens, thinking), Timings(0.25, seconds))
    answer.add([*thoughts, TextDelta(text, tokens), finish], 0.5)
    return Snapshot(answer, "finished", "note", seconds)


def test_the_difference_in_words() -> None:
    assert difference_words(shot("x", 1000, 2.0), shot("y", 3100, 4.0, thinking=2000)) == (
        "B used 3.1 times the tokens of A (3,100 against 1,000). "
        "B took 2.0 times the time of A (4.00 s against 2.00 s). "
        "Thinking took 0 tokens in A and 2,000 in B. The answers differ."
    )


def test_about_the_same_is_told_as_it_is() -> None:
    assert difference_words(shot("x ", 100, 2.0), shot("x", 103, 2.05)) == (
        "A used 100 and B 103 tokens. A took 2.00 s and B 2.05 s. The answers are the same, letter by letter."
    )


def test_nothing_divides_by_nothing() -> None:
    assert difference_words(shot("", 0, 0.0), shot("x", 5, 1.0)).startswith("A used 0 and B 5 tokens. A took 0.00 s")


def test_an_answer_without_an_end_is_not_compared() -> None:
    unfinished = Snapshot(Answer(text="x", tokens=3), "stopped", "note", 1.0)
    assert difference_words(unfinished, shot("x", 3, 1.0)) == ""
    assert difference_words(shot("x", 3, 1.0), unfinished) == ""
    unfinished.answer.finish = Finish("stopped", Usage(1, 3), Timings(0.1, 1.0))
    assert difference_words(unfinished, shot("x", 3, 1.0)) == ""


def test_the_costs_of_an_answer() -> None:
    html = costs_html(shot("x", 1001, 2.25, thinking=1000))
    assert re.findall("<td>(.*?)</td>", html) == ["1,001", "1,000", "0.25 s", "500.0", "2.25 s"]
    assert "thinking" not in costs_html(shot("x", 3, 1.0))


def test_the_costs_escape_an_error() -> None:
    html = costs_html(Snapshot(Answer(), "<img>", "error", 1.0))
    assert '<div class="error">&lt;img&gt;</div>' in html
