"""Events on their way: what has piled up goes out together, and nothing else changes."""

from collections.abc import AsyncGenerator, Sequence
from typing import cast

import pytest

from granite_demo.api.answers import Answers
from granite_demo.backends import Backend
from granite_demo.errors import EngineError
from granite_demo.messages import Message
from granite_demo.types import Finish, GenerationRequest, ReasoningDelta, StreamEvent, TextDelta, Timings, Usage

END = Finish("stop", Usage(1, 4), Timings(0.1, 0.2))


class Burst:
    """A backend whose events are all there at once."""

    def __init__(self, *events: StreamEvent | Exception) -> None:
        self.events = events

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event


async def told(count: int, *events: StreamEvent | Exception) -> list[tuple[int, StreamEvent]]:
    requests: Sequence[GenerationRequest] = [GenerationRequest((Message("user", "Hi"),))] * count
    answers = Answers(cast(Backend, Burst(*events)), requests)
    try:
        await answers.begin(1)
        return [item async for item in answers.events()]
    finally:
        await answers.close()


async def test_texts_that_have_piled_up_are_one() -> None:
    events = (ReasoningDelta("a", 1), ReasoningDelta("b", 2), TextDelta("c", 3), TextDelta("d", 4), END)
    assert await told(1, *events) == [(0, ReasoningDelta("ab", 2)), (0, TextDelta("cd", 4)), (0, END)]


async def test_answers_are_not_mixed() -> None:
    got = await told(3, TextDelta("a", 1), TextDelta("b", 2), END)
    for number in range(3):
        own = [event for index, event in got if index == number]
        assert "".join(event.text for event in own if isinstance(event, TextDelta)) == "ab"
        assert own[-1] == END


async def test_an_error_comes_after_what_was_said() -> None:
    with pytest.raises(EngineError, match="broke"):
        await told(1, TextDelta("a", 1), EngineError("It broke."))
