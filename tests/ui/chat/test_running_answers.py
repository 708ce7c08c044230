"""Answers that go on without their page, and how long they are kept."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from granite_demo.chat.conversation import Turn
from granite_demo.types.stop import Stop
from granite_demo.ui.chat import running_answers
from granite_demo.ui.chat.running_answers import AnswerState, RunningAnswer, RunningAnswers


class Story:
    """An answer that grows by one word at each ``say``."""

    def __init__(self, answers: RunningAnswers, page: str = "one", visitor: str = "v") -> None:
        self.words: asyncio.Queue[str] = asyncio.Queue()
        self.stop = Stop()
        self.answer: RunningAnswer = answers.begin(page, visitor, state(""), self._states(), self.stop)

    async def say(self, *words: str) -> None:
        """The last word is ``.``."""
        for word in words:
            self.words.put_nowait(word)
        await asyncio.sleep(0.01)

    async def _states(self) -> AsyncGenerator[AnswerState]:
        text = ""
        while not text.endswith("."):
            text += await self.words.get()
            yield state(text)


def state(text: str) -> AnswerState:
    turn = Turn(id="t", role="assistant", content=text)
    return AnswerState(turn, {"id": "c", "text": text}, ended=text.endswith("."))


async def texts(answers: RunningAnswers, page: str, answer: RunningAnswer) -> list[str]:
    return [one.turn.content async for one in answers.follow(page, answer)]


def reader(answers: RunningAnswers) -> Any:
    return answers.functions()[0]


async def test_two_pages_follow_one_answer_and_one_can_look_away() -> None:
    answers = RunningAnswers()
    story = Story(answers)
    await story.say("a")
    one = asyncio.create_task(texts(answers, "one", story.answer))
    two = asyncio.create_task(texts(answers, "two", story.answer))
    await story.say("b")
    answers.release("one")
    await story.say("c", ".")
    assert (await one)[-1] == "ab"
    assert (await two)[-1] == "abc."
    assert not story.stop.is_set()
    assert await texts(answers, "three", story.answer) == ["abc."]


async def test_stop_reaches_the_answer_that_the_page_shows() -> None:
    answers = RunningAnswers()
    first, second = Story(answers), Story(answers)
    assert answers.stop("one")
    assert (first.stop.is_set(), second.stop.is_set()) == (False, True)
    assert not answers.stop("two")


async def test_a_page_whose_events_end_without_a_word_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_answers, "CHECK_SECONDS", 0.02)
    answers = RunningAnswers(grace=0.1)
    story = Story(answers)
    followed = asyncio.create_task(texts(answers, "one", story.answer))
    await asyncio.sleep(0.2)
    assert not story.stop.is_set()
    followed.cancel()
    await asyncio.sleep(0.3)
    assert story.stop.is_set()
    assert answers.stop("one")  # its button still reaches the answer
    await story.say(".")


@pytest.mark.parametrize("reads", [False, True])
async def test_an_answer_that_nobody_reads_ends(monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    monkeypatch.setattr(running_answers, "CHECK_SECONDS", 0.02)
    answers = RunningAnswers(grace=0.2)
    story = Story(answers)
    await asyncio.sleep(0.3)
    assert not story.stop.is_set()  # its page is open
    answers.leave("one")
    for _ in range(10):
        await asyncio.sleep(0.05)
        if reads:
            assert reader(answers)([story.answer.key]) == [{"id": "c", "text": ""}]
    assert story.stop.is_set() is not reads
    await story.say(".")


async def test_the_end_can_be_read_for_a_while_by_who_has_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_answers, "ANSWER_SECONDS", 0.2)
    answers = RunningAnswers()
    story = Story(answers)
    await story.say("Yes", ".")
    read = reader(answers)
    assert read([story.answer.key, "other", 5]) == [{"id": "c", "text": "Yes."}, None, None]
    assert read("no list") == []
    await asyncio.sleep(0.3)
    assert read([story.answer.key]) == [None]


async def test_the_ends_that_are_kept_have_limits_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_answers, "MAX_ENDED_OF_VISITOR", 2_500)
    monkeypatch.setattr(running_answers, "MAX_ENDED_BYTES", 4_500)
    answers = RunningAnswers()
    stories = [Story(answers, visitor=visitor) for visitor in ("a", "a", "a", "b", "b", "c")]
    kept = []
    for story in stories:
        await story.say("x" * 1_000, ".")
        kept.append([bool(answers.get(one.answer.key)) for one in stories])
    assert kept[2] == [False, True, True, True, True, True]  # the visitor's own limit
    assert kept[5] == [False, False, True, True, True, True]  # that of all


async def test_a_fault_while_it_is_written_ends_the_answer() -> None:
    async def broken() -> AsyncGenerator[AnswerState]:
        yield state("Half")
        raise RuntimeError("a fault")

    answers = RunningAnswers()
    answer = answers.begin("one", "v", state(""), broken(), Stop())
    assert (await texts(answers, "one", answer))[-1] == "Half"
    assert answer.state.ended
