"""Events on their way: what has piled up goes out together, and nothing else changes."""

import asyncio
from collections.abc import AsyncGenerator
from typing import cast

import pytest

from granite_demo.backend import Backend
from granite_demo.errors import EngineError
from granite_demo.server.openai.streaming import FEW, MOST_PIECES, Answers, Pace
from granite_demo.types.events import Finish, ReasoningDelta, StreamEvent, TextDelta, Timings, Usage
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest

ASKED = GenerationRequest((Message("user", "Hi"),))
END = Finish("stop", Usage(1, 4), Timings(0.1, 0.2))


class Burst:
    """A backend whose events are all there at once, or come some seconds ``apart``."""

    def __init__(self, *events: StreamEvent | Exception, apart: float = 0.0) -> None:
        self.events = events
        self.apart = apart

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event
            if self.apart:
                await asyncio.sleep(self.apart)


async def events_of(
    count: int, *events: StreamEvent | Exception, pace: Pace | None = None, apart: float = 0.0
) -> list[tuple[int, StreamEvent]]:
    """Return the events of ``count`` answers. ``apart`` is the time in seconds between the events of each."""
    answers = Answers(cast(Backend, Burst(*events, apart=apart)), [ASKED] * count, pace or Pace())
    try:
        await answers.begin(1)
        return [item async for item in answers.events()]
    finally:
        await answers.close()


async def test_texts_that_have_piled_up_are_one() -> None:
    events = (ReasoningDelta("a", 1), ReasoningDelta("b", 2), TextDelta("c", 3), TextDelta("d", 4), END)
    assert await events_of(1, *events) == [(0, ReasoningDelta("ab", 2)), (0, TextDelta("cd", 4)), (0, END)]


async def test_answers_are_not_mixed() -> None:
    got = await events_of(3, TextDelta("a", 1), TextDelta("b", 2), END)
    for number in range(3):
        own = [event for index, event in got if index == number]
        assert "".join(event.text for event in own if isinstance(event, TextDelta)) == "ab"
        assert own[-1] == END


async def test_an_error_comes_after_the_text() -> None:
    with pytest.raises(EngineError, match="broke"):
        await events_of(1, TextDelta("a", 1), EngineError("It broke."))


async def test_an_answer_that_fails_has_no_end_but_the_error() -> None:
    stopped = Finish("stopped", Usage(1, 1), Timings(0.1, 0.2))
    answers = Answers(cast(Backend, Burst(TextDelta("a", 1), stopped, EngineError("It broke."))), [ASKED], Pace())
    heard = []
    with pytest.raises(EngineError, match="broke"):
        async for item in answers.events():
            heard.append(item)
    assert heard == [(0, TextDelta("a", 1))]


WORDS = [TextDelta("word ", count) for count in range(1, 41)]


async def test_few_answers_are_sent_token_by_token() -> None:
    pace = Pace()
    pace.answers = FEW - 1
    assert await events_of(1, *WORDS, END, pace=pace, apart=0.001) == [(0, event) for event in (*WORDS, END)]
    assert pace.answers == FEW - 1


async def test_of_many_answers_what_comes_in_a_while_is_sent_together() -> None:
    pace = Pace()
    pace.answers = MOST_PIECES // 10
    pieces = [event for _, event in await events_of(1, *WORDS, END, pace=pace, apart=0.001)]
    assert pieces[0] == WORDS[0]
    assert len(pieces) < 10
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == "word " * 40
    assert pieces[-1] == END
    assert pace.answers == MOST_PIECES // 10


async def test_answers_of_one_request_do_not_wait_for_one_another() -> None:
    pace = Pace()
    pace.answers = MOST_PIECES // 10
    async with asyncio.timeout(20):  # of 1,600 pieces, each of which would rest for 0.1 s
        got = await events_of(40, *WORDS, END, pace=pace, apart=1e-6)
    for number in range(40):
        texts = [event.text for index, event in got if index == number and isinstance(event, TextDelta)]
        assert "".join(texts) == "word " * 40
