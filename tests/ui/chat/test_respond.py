"""The answer to the last turn: streamed, and kept on its way."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from granite_demo.access import Access
from granite_demo.chat import conversation as conversations
from granite_demo.chat.actions import Change
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.errors import EngineError
from granite_demo.types.events import Dropped, Finish, ReasoningDelta, TextDelta, Timings, ToolCalled, Usage
from granite_demo.types.messages import Document, Message, ToolCall
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.stop import Stop
from granite_demo.ui.chat.respond import follow, left_out, respond
from granite_demo.ui.chat.running_answers import RunningAnswers
from granite_demo.ui.chat.tab import ChatTab, layout
from granite_demo.ui.settings import DEFAULTS
from granite_demo.ui.streaming import Update, Visit
from tests.fakes import READY, FakeBackend


@pytest.fixture(scope="module")
def tab() -> ChatTab:
    with gr.Blocks(analytics_enabled=False):
        return layout(FakeBackend(), FakeBackend(), Access())


def question(text: str = "Why?") -> Conversation:
    return conversations.add(conversations.start(), "user", content=text)


class Chat:
    """What the Chat tab shows of one question."""

    def __init__(self, tab: ChatTab, backend: FakeBackend) -> None:
        self.tab, self.backend = tab, backend
        self.answers = RunningAnswers()
        self.visit = Visit(backend, "", Stop(), page="page")

    async def updates(
        self,
        conversation: Conversation,
        settings: tuple[Any, ...] = DEFAULTS,
        stop_after: int | None = None,
        **more: Any,
    ) -> list[Update]:
        seen: list[Update] = []
        async for update in self.respond(conversation, Change(conversation, True, **more), settings):
            seen.append(update)
            if stop_after is not None and len(seen) > stop_after:
                self.answers.stop("page")
        return seen

    def respond(
        self, before: Conversation, change: Change, settings: tuple[Any, ...] = DEFAULTS, **box: Any
    ) -> AsyncGenerator[Update]:
        return respond(self.tab, self.visit, self.answers, before, change, settings, **box)

    async def answer(self, conversation: Conversation, settings: tuple[Any, ...] = DEFAULTS, **more: Any) -> Turn:
        """The turn of the last patch."""
        patches = [
            update[self.tab.patch]
            for update in await self.updates(conversation, settings, **more)
            if self.tab.patch in update
        ]
        [turn] = patches[-1]["turns"].values()
        return Turn.model_validate(turn)

    def histories(self, updates: list[Update]) -> list[Any]:
        return [update[self.tab.chatbot] for update in updates if self.tab.chatbot in update]

    def text(self, update: Update) -> str:
        return str(update[self.tab.chatbot][-1]["content"][0]["text"])


@pytest.fixture
def chat(tab: ChatTab, backend: FakeBackend) -> Chat:
    return Chat(tab, backend)


async def test_the_answer_grows_under_the_question(chat: Chat) -> None:
    chat.backend.delay = 0.15
    seen = await chat.updates(question())
    histories = chat.histories(seen)
    assert len({str(history[-1]["content"][0]["text"]) for history in histories}) > 2
    assert {history[0]["content"][0]["text"] for history in histories} == {'<div class="said">Why?</div>'}
    assert [request.messages for request in chat.backend.requests] == [(Message("user", "Why?"),)]


async def test_the_last_update_has_the_answer_and_the_buttons_under_it(chat: Chat) -> None:
    before = conversations.add(question("Before?"), "assistant", content="Yes.")
    after = conversations.add(before, "user", content="Why?")
    first, *_, last, meter = [update async for update in chat.respond(before, Change(after, True), value="")]
    assert list(meter) == [chat.tab.meter.bar]
    asked, ended = first[chat.tab.patch], last[chat.tab.patch]
    assert (asked["state"], asked["head"], list(asked["turns"])) == ("asked", after.head, [after.head])
    assert (first[chat.tab.textbox].value, first[chat.tab.textbox].stop_btn) == ("", "Stop")
    assert (ended["state"], ended["id"], list(ended["turns"])) == ("", before.id, [after.head, ended["head"]])
    turn = Turn.model_validate(ended["turns"][ended["head"]])
    assert (turn.role, turn.content, turn.parent) == ("assistant", "Hello world!", after.head)
    assert "finished (stop)" in turn.note
    assert turn.made["sampling"]["max_tokens"] == 512
    assert "act retry" in str(last[chat.tab.chatbot][-1])
    assert "act retry" not in str(first[chat.tab.chatbot][-1])


async def test_a_change_that_asks_nothing_is_one_update(chat: Chat) -> None:
    before = conversations.add(question(), "assistant", content="So.", vote="up")
    after = conversations.change(before, before.head or "", vote="")
    [update] = [update async for update in chat.respond(before, Change(after))]
    patch = update[chat.tab.patch]
    assert (patch["state"], list(patch["turns"])) == ("", [before.head])
    assert chat.backend.requests == []


async def test_a_page_has_all_that_it_shows_to_keep_it(chat: Chat) -> None:
    chat.backend.delay = 0.15
    seen = await chat.updates(question())
    [asked, end] = [update[chat.tab.patch] for update in seen if chat.tab.patch in update]
    shown = [update for update in seen if chat.tab.growing in update]
    assert len(shown) > 2
    for update in shown:
        part = update[chat.tab.growing]
        assert (part["state"], part["answer"], part["head"]) == ("growing", asked["answer"], end["head"])
        turn = Turn.model_validate(part["turns"][part["head"]])
        assert turn.content == chat.text(update)
        assert "interrupted" in turn.note
    assert (asked["state"], end["state"]) == ("asked", "")
    assert "interrupted" not in end["turns"][end["head"]]["note"]


async def test_an_answer_goes_on_while_its_page_shows_something_else(chat: Chat) -> None:
    chat.backend.words, chat.backend.allowed = ["One", " two"], 1
    asked = question()
    seen = []
    async for update in chat.respond(asked, Change(asked, True)):
        seen.append(update)
        if chat.tab.growing in update and "One" in chat.text(update):
            chat.answers.release("page")
    assert chat.tab.patch not in seen[-1]
    answer = chat.answers.get(seen[0][chat.tab.patch]["answer"])
    assert answer
    assert not answer.stop.is_set()
    chat.backend.allowed = 2
    shown = [update async for update in follow(chat.tab, chat.visit, chat.answers, answer, asked, DEFAULTS)]
    [end] = [update[chat.tab.patch] for update in shown if chat.tab.patch in update]
    assert Turn.model_validate(end["turns"][end["head"]]).content == "One two"


async def test_an_answer_knows_the_documents_that_it_was_given(chat: Chat) -> None:
    texts = (Document(title="sky.txt", text="The sky is blue."), Document(title="sea.txt", text="So is the sea."))
    turn = await chat.answer(question().model_copy(update={"documents": texts}))
    assert [one.title for one in turn.sent] == ["sky.txt", "sea.txt"]


async def test_thinking_is_shown_before_the_answer(chat: Chat) -> None:
    finish = Finish("stop", Usage(5, 3, 1), Timings(0.1, 0.3))
    chat.backend.script, chat.backend.delay = [ReasoningDelta("Hm", 1), TextDelta("Yes", 2), finish], 0.2
    histories = chat.histories(await chat.updates(question()))
    titles = [[message.get("metadata", {}).get("status") for message in history] for history in histories]
    assert [None, "pending", None] in titles
    assert titles[-1] == [None, "done", None]


async def test_a_call_that_is_made_again_waits_for_a_result_again(chat: Chat) -> None:
    call = ToolCall("dice", "{}")
    chat.backend.script = [ToolCalled(call), Finish("tool_calls", Usage(5, 2), Timings(0.1, 0.3))]
    before = conversations.add(question(), "assistant", calls=[call])
    after = conversations.add(before, "tool", name="dice", content="4")
    first, *_, last, _ = [update async for update in chat.respond(before, Change(after, True))]
    assert ["pending" in str(update[chat.tab.chatbot]) for update in (first, last)] == [False, True]


async def test_an_error_is_a_note_and_the_text_stays(chat: Chat) -> None:
    chat.backend.error = EngineError("The model ran out of memory.")
    turn = await chat.answer(question())
    assert (turn.content, turn.note, turn.kind) == ("Hello world!", "The model ran out of memory.", "error")
    assert turn.made["finish_reason"] == "stopped"


async def test_an_answer_that_was_cut_goes_on_with_its_tokens_where_the_same_model_answers(chat: Chat) -> None:
    chat.backend.state = replace(READY, name="granite")
    begun = {"token_ids": [4, 5], "provenance": {"model": "granite"}}
    turn = await chat.answer(question(), begun=begun)
    assert chat.backend.requests[0].written == (4, 5)
    assert turn.made["sampling"]["max_tokens"] == 514
    for wrong in ({**begun, "provenance": {"model": "other"}}, {**begun, "token_ids": ["4"]}):
        assert "cannot be continued" in (await chat.answer(question(), begun=wrong)).note
    assert len(chat.backend.requests) == 1
    await chat.answer(question(), begun={"text": "Once upon"})
    assert (chat.backend.requests[-1].written_text, chat.backend.requests[-1].written) == ("Once upon", ())


async def test_what_was_left_out_is_named(chat: Chat) -> None:
    chat.backend.script = [Dropped(4), TextDelta("Yes", 2), Finish("stop", Usage(5, 2, 0), Timings(0.1, 0.3))]
    conversation = conversations.start(system="Be brief.")
    for text in ("What is\nblue · or red?", "And " * 30, "Why?"):
        conversation = conversations.add(conversation, "user", content=text)
        conversation = conversations.add(conversation, "assistant", content="So.")
    conversation = conversations.add(conversation, "user", content="Really?")
    named = f"the oldest 4 messages · from “What is blue or red?” to “{('And ' * 10).rstrip()}…”"
    assert (await chat.answer(conversation)).note.endswith(named)


def test_one_question_that_was_left_out_is_named_alone() -> None:
    request = GenerationRequest((Message("user", "One?"), Message("assistant", "Yes."), Message("user", "Two?")))
    assert left_out(request, 2) == "the question “One?”"
    assert left_out(request, 0) == ""


@pytest.mark.parametrize(("tokens", "advice"), [(512, "raise Max new tokens"), (40, "the context is full")])
async def test_an_answer_that_was_cut_says_what_to_do(chat: Chat, tokens: int, advice: str) -> None:
    chat.backend.script = [TextDelta("Once upon", tokens), Finish("length", Usage(5, tokens, 0), Timings(0.1, 0.3))]
    assert advice in (await chat.answer(question())).note
    chat.backend.script = None
    assert advice not in (await chat.answer(question())).note


async def test_values_out_of_range_are_shown_under_the_question(chat: Chat) -> None:
    last = chat.histories(await chat.updates(question(), (9.0, *DEFAULTS[1:])))[-1]
    assert "Temperature must be between" in last[-1]["content"][1]["text"]
    assert chat.backend.requests == []


async def test_a_stopped_answer_keeps_its_text(chat: Chat) -> None:
    chat.backend.delay = 0.3
    last = chat.histories(await chat.updates(question(), stop_after=1))[-1]
    assert "stopped" in str(last[-1])
    assert chat.backend.running == 0
