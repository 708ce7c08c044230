"""The ways to change a conversation on the Chat tab, called as the browser calls them."""

from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from granite_demo.access import Access
from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import MAX_TURNS, Conversation
from granite_demo.types.messages import ToolCall
from granite_demo.ui.app import build_ui
from granite_demo.ui.gradio_patches.events import DAMAGED
from granite_demo.ui.streaming import STILL_WRITING
from tests.fakes import FakeBackend

Shown = dict[str, Any]
"""New values of components, by their element id, or else by their place among the outputs."""
TALK = conversations.add(conversations.add(conversations.start(), "user", content="Why?"), "assistant", content="So.")


class Page:
    """The page over a fake backend."""

    def __init__(self) -> None:
        self.backend = FakeBackend()
        self.events: dict[str, Any] = {
            str(fn.api_name): fn for fn in build_ui(self.backend, self.backend, Access()).fns.values()
        }

    async def updates(self, name: str, held: Any = TALK, event: Any = None, **values: Any) -> list[Shown]:
        """The updates of an event. ``values`` are those of inputs by their labels."""
        fn = self.events[name]
        data = [values.get(str(part.label), part.value) for part in fn.inputs]
        data[0] = conversations.dump(held) if isinstance(held, Conversation) else held
        names = {part: part.elem_id or str(place) for place, part in enumerate(fn.outputs)}
        request = SimpleNamespace(client=None, session_hash="a")
        async with aclosing(fn.fn(request, gr.EventData(None, event), *data)) as updates:
            return [{names[part]: value for part, value in update.items()} async for update in updates]


@pytest.fixture(scope="module")
def shared() -> Page:
    return Page()


@pytest.fixture
def page(shared: Page) -> Page:
    shared.backend.requests.clear()
    return shared


@pytest.mark.parametrize(
    ("name", "event", "values"),
    [
        ("send", None, {"Message": "And?"}),
        ("act", {"action": "retry", "id": TALK.head, "made": None}, {}),
    ],
)
async def test_each_way_to_ask_is_answered(page: Page, name: str, event: Any, values: dict[str, Any]) -> None:
    first, *_, last = await page.updates(name, event=event, **values)
    assert first["message"].stop_btn == "Stop"
    assert "Hello world!" in str(last["chatbot"])
    assert last["message"].submit_btn == "Send"
    assert [message.content for message in page.backend.requests[0].messages][:1] == ["Why?"]


async def test_an_edited_question_and_the_results_of_calls_are_answered(page: Page) -> None:
    question = next(iter(TALK.turns))
    await page.updates("edit", event={"id": question, "text": "How?"})
    calls = [ToolCall("calculator", '{"expression": "6*7"}')]
    called = conversations.add(conversations.rewind(TALK, question), "assistant", calls=calls)
    for arguments, result in (calls[0].arguments, "41"), ('{"expression": "6*8"}', "48"):
        await page.updates("results", called, {"results": [{"arguments": arguments, "result": result}]})
    said = [[message.content for message in request.messages] for request in page.backend.requests]
    assert said == [["How?"], ["Why?", "", "41"], ["Why?", "", "48"]]
    assert page.backend.requests[-1].messages[1].tool_calls[0].arguments == '{"expression": "6*8"}'


async def test_a_vote_asks_nothing_and_shows_no_stop(page: Page) -> None:
    updates = await page.updates("act", event={"action": "up", "id": TALK.head, "made": None})
    assert all(update["message"].submit_btn == "Send" for update in updates)
    assert "Good answer (chosen)" in str(updates[0]["chatbot"])
    assert page.backend.requests == []


FULL = TALK.model_copy(
    update={
        "turns": {
            **TALK.turns,
            **{f"t{n}": conversations.Turn(id=f"t{n}", parent=TALK.head, role="user") for n in range(MAX_TURNS - 2)},
        }
    }
)


@pytest.mark.parametrize(
    ("name", "held", "event", "values", "words"),
    [
        ("send", TALK, None, {"Message": "Hello", "Tools": "[{]"}, "line 1, column 3"),
        ("send", FULL, None, {"Message": "Hello"}, "has 4,000 turns"),
        ("send", {"turns": 5}, None, {"Message": "Hello"}, "not a conversation"),
        ("send", "text", None, {"Message": "Hello"}, "not a conversation"),
        ("act", TALK, {"action": "retry", "id": "gone", "made": None}, {}, "no longer part"),
        ("act", TALK, None, {}, DAMAGED),
        ("results", TALK, {"results": []}, {}, "No call waits"),
        ("results", TALK, {"results": [3]}, {}, DAMAGED),
    ],
)
async def test_what_cannot_be_asked_is_a_note_and_changes_nothing(
    page: Page, name: str, held: Any, event: Any, values: dict[str, Any], words: str
) -> None:
    [update] = await page.updates(name, held, event, **values)
    assert words in update.pop("chat-message")
    assert update.pop("message").value is None  # the box keeps what is written
    assert update == {}
    assert page.backend.requests == []


async def test_a_question_waits_for_the_answer_before(page: Page) -> None:
    page.backend.delay = 0.1
    fn = page.events["send"]
    data = [{"Message": "One"}.get(str(part.label), part.value) for part in fn.inputs]
    request = SimpleNamespace(client=None, session_hash="a")
    async with aclosing(fn.fn(request, gr.EventData(None, None), *data)) as updates:
        await anext(updates)
        [refused] = await page.updates("send", {}, Message="Two")
    page.backend.delay = 0.0
    assert STILL_WRITING in refused["chat-message"]
    assert len(page.backend.requests) <= 1
