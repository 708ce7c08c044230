"""Tests for tool calls in a browser: one card each, with a form, Run, Reject and the result in view."""

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from granite_demo.chat.tools import EXAMPLE_TOOLS, to_json
from granite_demo.types.events import Finish, Timings, ToolCalled, Usage
from granite_demo.types.messages import Message, ToolCall
from tests.browser.conftest import OpenPage
from tests.browser.frame import close_sheet, open_sheet
from tests.browser.test_chat import answers, send
from tests.fakes import FakeBackend

pytestmark = pytest.mark.browser

END = Finish("tool_calls", Usage(5, 9, 4), Timings(0.1, 0.5, 0.2), token_ids=(1, 2, 3))
TRIP = {
    "name": "trip",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "hotel": {"type": "boolean"},
            "class": {"enum": ["first", "second"]},
            "stops": {"type": "array", "items": {"type": "object"}},
            "note": {"type": "string"},
        },
        "required": ["city"],
    },
}
GIVEN = {"city": "<b>Bonn</b>", "days": 3, "hotel": False, "class": "second", "stops": [{"at": "Ulm"}]}


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page(viewport={"width": 1280, "height": 720})


def ask(page: Page, fake: FakeBackend, tools: str, *calls: ToolCall) -> None:
    open_sheet(page, "tools")
    page.locator("#tool-definitions textarea").fill(tools)
    close_sheet(page)
    fake.script = [*map(ToolCalled, calls), END]
    send(page, "What now?")
    expect(page.locator("#chatbot .card.ready")).to_have_count(len(calls))
    fake.script = None


def sums(*expressions: str) -> list[ToolCall]:
    return [ToolCall("calculator", json.dumps({"expression": text})) for text in expressions]


def test_a_call_is_one_card_in_view_and_runs_with_one_click(page: Page, fake: FakeBackend) -> None:
    ask(page, fake, to_json(EXAMPLE_TOOLS), *sums("6*7"))
    card = page.locator("#chatbot .card")
    for name in ("Run", "Reject", "Send results", "JSON"):
        expect(card.get_by_role("button", name=name, exact=True)).to_be_in_viewport(ratio=1)
    expect(page.locator("#message textarea")).to_be_in_viewport(ratio=1)
    expect(page.locator("#calls-bar")).to_have_count(0)
    assert page.locator("#app").inner_text().count("calculator") == 2  # its card, and its chip
    result = card.get_by_label("Result 1")
    card.get_by_role("button", name="Send results").click()
    expect(page.locator("#chat-message")).to_contain_text("Result 1 is empty")
    card.get_by_role("button", name="Reject").click()
    expect(result).to_have_value("The user rejected this call; it was not run.")
    card.get_by_label("expression").fill("6*8")
    card.get_by_role("button", name="Run", exact=True).click()
    expect(result).to_have_value("48")
    expect(result).to_be_in_viewport(ratio=1)
    card.get_by_role("button", name="Send results").click()
    expect(answers(page).last).to_contain_text("Hello world!")
    _, called, given = fake.requests[-1].messages
    assert [json.loads(call.arguments) for call in called.tool_calls] == [{"expression": "6*8"}]
    assert given == Message("tool", "48", name="calculator")
    expect(page.locator("#chatbot .card.pending")).to_have_count(0)


def test_the_form_follows_the_schema(page: Page, fake: FakeBackend) -> None:
    ask(page, fake, json.dumps([TRIP]), ToolCall("trip", json.dumps(GIVEN)))
    card = page.locator("#chatbot .card")
    expect(card.get_by_role("button", name="Run", exact=True)).to_have_count(0)
    expect(card.get_by_label("city")).to_have_value("<b>Bonn</b>")
    card.get_by_label("days").fill("4")
    card.get_by_role("switch", name="hotel").check()
    card.get_by_label("class").select_option(label="first")
    card.get_by_label("stops").fill("[1")
    card.get_by_label("Result 1").fill("booked")
    card.get_by_role("button", name="Send results").click()
    expect(page.locator("#chat-message")).to_contain_text("not JSON")
    card.get_by_label("stops").fill("[1]")
    card.get_by_role("button", name="JSON").click()
    raw = card.get_by_label("Arguments as JSON")
    expected: dict[str, Any] = {"city": "<b>Bonn</b>", "days": 4, "hotel": True, "class": "first", "stops": [1]}
    assert json.loads(raw.input_value()) == expected
    card.get_by_role("button", name="JSON").click()
    card.get_by_label("note").fill("late")
    card.get_by_role("button", name="Send results").click()
    expect(answers(page).last).to_contain_text("Hello world!")
    assert json.loads(fake.requests[-1].messages[1].tool_calls[0].arguments) == {**expected, "note": "late"}


def test_several_calls_run_and_go_with_one_click(page: Page, fake: FakeBackend) -> None:
    ask(page, fake, to_json(EXAMPLE_TOOLS), *sums("6*7", "7*7"))
    expect(page.locator("#calls-bar #run-all")).to_be_in_viewport(ratio=1)
    page.locator("#run-all").click()
    expect(answers(page).last).to_contain_text("Hello world!")
    assert [message.content for message in fake.requests[-1].messages[2:]] == ["42", "49"]
    expect(page.locator("#calls-bar")).to_have_count(0)


@pytest.mark.release
def test_typed_results_stay_while_the_conversation_changes(page: Page, fake: FakeBackend) -> None:
    broken = ToolCall("", '{"city": ', error="It ends too early.")
    ask(page, fake, to_json(EXAMPLE_TOOLS), *sums("6*7"), broken)
    expect(page.locator("#chatbot .card").nth(1)).to_contain_text("It ends too early.")
    expect(page.locator("#run-all")).to_have_count(0)
    page.get_by_label("Result 1").fill("43")
    page.locator("#chatbot .act.up").click()
    expect(page.locator("#chatbot .act.up")).to_have_attribute("title", "Good answer (chosen)")
    expect(page.get_by_label("Result 1")).to_have_value("43")
    page.get_by_label("Result 2").fill("Error")
    page.locator("#send-results").click()
    expect(answers(page).last).to_contain_text("Hello world!")
    assert [message.content for message in fake.requests[-1].messages[2:]] == ["43", "Error"]


def test_tools_are_defined_and_a_mistake_keeps_the_text(page: Page) -> None:
    open_sheet(page, "tools")
    box = page.locator("#tool-definitions textarea")
    box.fill('[{"name": }]')
    box.blur()
    expect(page.locator("#tools-message .error")).to_contain_text("line 1, column 11")
    page.get_by_role("button", name="Use the examples").click()
    expect(page.locator("#tools-message .error")).to_contain_text("not JSON")
    expect(box).to_have_value('[{"name": }]')
    box.fill('[{"name": "weather"}]')
    box.blur()
    expect(page.locator("#tools-message")).to_contain_text("The model may call weather.")
