"""The answer to the last turn: streamed, and kept on its way."""

from dataclasses import replace
from typing import Any

import pytest

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.errors import EngineError
from granite_demo.types.events import Dropped, Finish, ReasoningDelta, TextDelta, Timings, Usage
from granite_demo.types.messages import Document, Message
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.stop import Stop
from granite_demo.ui.chat import respond as responding
from granite_demo.ui.chat.respond import Update, left_out, respond
from granite_demo.ui.settings import DEFAULTS
from tests.fakes import READY, FakeBackend


def question(text: str = "Why?") -> Conversation:
    return conversations.add(conversations.start(), "user", content=text)


async def updates(
    backend: FakeBackend, conversation: Conversation, values: tuple[Any, ...] = DEFAULTS, stop_after: int | None = None
) -> list[Update]:
    stop = Stop()
    seen: list[Update] = []
    async for update in respond(backend, conversation, values, stop):
        seen.append(update)
        if stop_after is not None and len(seen) > stop_after:
            stop.set()
    return seen


def text_of(update: Update) -> str:
    return str(update.history[-1]["content"][0]["text"])


async def test_the_answer_grows_under_the_question(backend: FakeBackend) -> None:
    backend.delay = 0.15
    seen = await updates(backend, question())
    assert len({text_of(update) for update in seen}) > 2
    assert {update.history[0]["content"][0]["text"] for update in seen} == {"Why?"}
    assert [request.messages for request in backend.requests] == [(Message("user", "Why?"),)]


async def test_the_last_update_is_the_answer_to_keep(backend: FakeBackend) -> None:
    conversation = question()
    last = (await updates(backend, conversation))[-1]
    assert last.pending is not None
    assert last.pending["conversation"] == conversation.id
    turn = Turn.model_validate(last.pending["turn"])
    assert (turn.role, turn.content, turn.parent) == ("assistant", "Hello world!", conversation.head)
    assert "finished (stop)" in turn.note
    assert turn.made["sampling"]["max_tokens"] == 512


async def test_a_page_that_is_closed_finds_what_was_written_so_far(backend: FakeBackend, monkeypatch: Any) -> None:
    monkeypatch.setattr(responding, "KEEP_SECONDS", 0.0)
    backend.delay = 0.15
    seen = [update.pending for update in await updates(backend, question()) if update.pending]
    assert len(seen) > 2
    assert "interrupted" in seen[0]["turn"]["note"]
    assert "interrupted" not in seen[-1]["turn"]["note"]
    assert len({pending["turn"]["id"] for pending in seen}) == 1


async def test_an_answer_knows_the_documents_that_it_was_given(backend: FakeBackend) -> None:
    texts = (Document(title="sky.txt", text="The sky is blue."), Document(title="sea.txt", text="So is the sea."))
    last = (await updates(backend, question().model_copy(update={"documents": texts})))[-1]
    assert last.pending is not None
    assert [one.title for one in Turn.model_validate(last.pending["turn"]).sent] == ["sky.txt", "sea.txt"]


async def test_thinking_is_shown_before_the_answer(backend: FakeBackend) -> None:
    finish = Finish("stop", Usage(5, 3, 1), Timings(0.1, 0.3))
    backend.script, backend.delay = [ReasoningDelta("Hm", 1), TextDelta("Yes", 2), finish], 0.2
    seen = await updates(backend, question())
    titles = [[message.get("metadata", {}).get("status") for message in update.history] for update in seen]
    assert [None, "pending", None] in titles
    assert titles[-1] == [None, "done", None]


async def test_an_error_is_a_note_and_the_text_stays(backend: FakeBackend) -> None:
    backend.error = EngineError("The model ran out of memory.")
    conversation = question()
    last = (await updates(backend, conversation))[-1]
    assert last.pending is not None
    turn = Turn.model_validate(last.pending["turn"])
    assert (turn.content, turn.note, turn.kind) == ("Hello world!", "The model ran out of memory.", "error")
    assert turn.made["finish_reason"] == "stopped"


async def test_an_answer_that_was_cut_goes_on_with_its_tokens_where_the_same_model_answers(
    backend: FakeBackend,
) -> None:
    backend.state = replace(READY, name="granite")
    begun = {"token_ids": [4, 5], "provenance": {"model": "granite"}}
    seen = [update async for update in respond(backend, question(), DEFAULTS, Stop(), begun)]
    assert backend.requests[0].written == (4, 5)
    assert seen[-1].pending is not None
    assert seen[-1].pending["turn"]["made"]["sampling"]["max_tokens"] == 514
    for wrong in ({**begun, "provenance": {"model": "other"}}, {**begun, "token_ids": ["4"]}):
        seen = [update async for update in respond(backend, question(), DEFAULTS, Stop(), wrong)]
        assert seen[-1].pending is not None
        assert "cannot go on" in seen[-1].pending["turn"]["note"]
    assert len(backend.requests) == 1


async def test_what_was_left_out_is_named(backend: FakeBackend) -> None:
    backend.script = [Dropped(4), TextDelta("Yes", 2), Finish("stop", Usage(5, 2, 0), Timings(0.1, 0.3))]
    conversation = conversations.start(system="Be brief.")
    for text in ("What is\nblue · or red?", "And " * 30, "Why?"):
        conversation = conversations.add(conversation, "user", content=text)
        conversation = conversations.add(conversation, "assistant", content="So.")
    conversation = conversations.add(conversation, "user", content="Really?")
    last = (await updates(backend, conversation))[-1]
    assert last.pending is not None
    named = f"the oldest 4 messages · from “What is blue or red?” to “{('And ' * 10).rstrip()}…”"
    assert last.pending["turn"]["note"].endswith(named)


def test_one_question_that_was_left_out_is_named_alone() -> None:
    request = GenerationRequest((Message("user", "One?"), Message("assistant", "Yes."), Message("user", "Two?")))
    assert left_out(request, 2) == "the question “One?”"
    assert left_out(request, 0) == ""


@pytest.mark.parametrize(("tokens", "advice"), [(512, "raise Max new tokens"), (40, "the context is full")])
async def test_an_answer_that_was_cut_says_what_to_do(backend: FakeBackend, tokens: int, advice: str) -> None:
    backend.script = [TextDelta("Once upon", tokens), Finish("length", Usage(5, tokens, 0), Timings(0.1, 0.3))]
    last = (await updates(backend, question()))[-1]
    assert last.pending is not None
    assert advice in last.pending["turn"]["note"]
    backend.script = None
    last = (await updates(backend, question()))[-1]
    assert last.pending is not None
    assert advice not in last.pending["turn"]["note"]


async def test_values_out_of_range_are_told_under_the_question(backend: FakeBackend) -> None:
    seen = await updates(backend, question(), (9.0, *DEFAULTS[1:]))
    assert "Temperature must be between" in seen[-1].history[-1]["content"][1]["text"]
    assert backend.requests == []


async def test_a_stopped_answer_keeps_its_text(backend: FakeBackend) -> None:
    backend.delay = 0.3
    seen = await updates(backend, question(), stop_after=1)
    assert seen[-1].pending is not None
    assert "stopped" in seen[-1].pending["turn"]["note"]
    assert backend.running == 0
