"""Tests that turn 200 of a conversation costs as much as turn 2, in bytes and nodes. ``measure_turns`` has times."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from granite_demo.chat import conversation
from granite_demo.chat.conversation import Conversation
from tests.browser.conftest import OpenPage
from tests.browser.measure_turns import conversation_of
from tests.browser.test_chat import act, answers
from tests.browser.test_conversation import settled
from tests.fakes import FakeBackend

pytestmark = pytest.mark.browser

WORDS = [f"word{number} " for number in range(60)]
MADE = {"token_ids": list(range(100_000, 100_800)), "versions": {"torch": "2.9.0"}}
ENVELOPE = 6000
"""The bytes of a request without the conversation."""

COUNT_CHANGES = """() => {
  window.seen = [0, 0];
  new MutationObserver((records) => { window.seen = [window.seen[0] + records.length, window.seen[1] + 1]; })
    .observe(document.querySelector("#chatbot"), { subtree: true, childList: true, characterData: true });
}"""


def of(turns: int) -> tuple[Conversation, int]:
    """Return a conversation whose answers have records and older versions, and the bytes of the shown branch."""
    talk = conversation.load(json.loads(conversation_of(turns)))
    for turn in conversation.path(talk):
        if turn.role == "assistant":
            other = turn.model_copy(update={"id": conversation.new_id(), "content": "Old. " * 200, "made": MADE})
            known = turn.model_copy(update={"made": MADE})
            talk = talk.model_copy(update={"turns": {**talk.turns, turn.id: known, other.id: other}})
    shown = sum(len(turn.content) + 300 for turn in conversation.path(talk))
    return talk, shown


def cost(page: Page, turns: int) -> dict[str, Any]:
    """Return the cost of another question: bytes of each request, changed nodes in each update, bytes of the branch."""
    talk, shown = of(turns)
    file = {"name": "long.json", "mimeType": "text/plain", "buffer": json.dumps(conversation.dump(talk)).encode()}
    page.locator("#library input[type=file]").set_input_files(file)  # type: ignore[arg-type]
    expect(page.locator("#chatbot")).to_contain_text(f"Question {turns // 2 - 1}")
    page.wait_for_timeout(2000)
    posted: list[int] = []
    page.on("request", lambda request: posted.append(len(request.post_data or "")))
    page.locator("#message textarea").press_sequentially("Now", delay=700)
    page.wait_for_timeout(1500)
    typed = posted[:]
    page.locator("#message textarea").fill("And now?")
    page.wait_for_timeout(1500)
    posted.clear()
    page.get_by_role("button", name="Send", exact=True).click()
    expect(answers(page).last).to_contain_text("word3")
    page.evaluate(COUNT_CHANGES)
    expect(answers(page).last).to_contain_text("word40")
    changes, updates = page.evaluate("window.seen")
    expect(answers(page).last).to_contain_text("finished")
    expect(page.locator("#chatbot .act.retry").last).to_be_visible()
    page.wait_for_timeout(1500)
    return {"typed": typed, "sent": posted, "changes": changes / updates, "shown": shown}


@pytest.mark.release
def test_turn_200_costs_as_much_as_turn_2(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.words, fake.delay = WORDS, 1 / 11
    few, many = (cost(open_page(), turns) for turns in (2, 200))
    # The page sends the branch that is shown after a pause in typing, and the tree once with a question, both without
    # the records of the answers.
    for kind, most, ways in (("typed", 1.2, 3), ("sent", 3.0, 1)):
        carrying = [size for size in many[kind] if size > many["shown"] / 2]
        assert 0 < len(carrying) <= ways
        assert max(carrying) < most * many["shown"] + ENVELOPE
        assert sum(many[kind]) - sum(carrying) <= 2 * sum(few[kind]) + ENVELOPE
    assert len(many["sent"]) <= 2 * len(few["sent"])
    assert many["changes"] <= 2 * few["changes"]


ASKS: dict[str, Callable[[Page], None]] = {
    "question": lambda page: page.get_by_role("button", name="Send", exact=True).click(),
    "retry": lambda page: act(page, "retry"),
    "vote": lambda page: act(page, "up"),
}


@pytest.mark.parametrize("ask", ASKS)
def test_the_conversation_is_sent_once(page: Page, fake: FakeBackend, ask: str) -> None:
    carrying: list[str] = []
    page.on("request", lambda request: carrying.append(request.url) if "canary" in (request.post_data or "") else None)
    fake.words, fake.delay = ["word "] * 60, 0.05  # more than two seconds, so that the browser stores a part
    box = page.locator("#message textarea")
    box.fill("A canary sings.")
    page.wait_for_timeout(1500)  # until the meter has measured the text
    carrying.clear()
    ASKS["question"](page)
    settled(page)
    page.wait_for_timeout(1500)
    assert len(carrying) == 1
    if ask == "question":
        box.fill("And now?")
        page.wait_for_timeout(1500)
    carrying.clear()
    ASKS[ask](page)
    if ask == "vote":
        expect(page.locator("#chatbot .act.up")).to_have_attribute("title", "Good answer (chosen)")
    else:
        expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    page.wait_for_timeout(1500)
    assert len(carrying) == 1
