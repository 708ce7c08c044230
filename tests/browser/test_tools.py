"""Tests for tool definitions and calls in a browser, on a small page."""

import re
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect

from granite_demo.chat import conversation as conversations
from granite_demo.chat.tools import EXAMPLE_TOOLS, parse_tools
from granite_demo.errors import InvalidRequestError
from granite_demo.server.run import running
from granite_demo.types.messages import ToolCall
from granite_demo.ui.chat import tools
from granite_demo.ui.gradio_patches.events import DIRECT
from granite_demo.ui.html import note_html
from granite_demo.ui.theme import load_theme
from tests.browser.frame import add_look
from tests.fakes import FakeBackend

pytestmark = pytest.mark.browser

CALLS = (
    ToolCall(name="calculator", arguments='{"expression": "6 * 7"}'),
    ToolCall(name="weather", arguments='{"city": "<b>Bonn</b>"}'),
    ToolCall(name="", arguments='{"city": ', error="It ends too early."),
)


class Sent:
    """The values that the page sent, the newest last."""

    def __init__(self) -> None:
        self.conversations: list[conversations.Conversation] = []
        self.arrived = threading.Event()


def build(sent: Sent) -> Any:
    """Return a page with the panels and a conversation whose last answer has three calls."""
    first = conversations.add(conversations.start(), "user", content="How much?")
    first = conversations.add(first, "assistant", calls=CALLS)

    def send(held: Any, *results: str) -> tuple[Any, ...]:
        try:
            conversation = tools.with_results(conversations.load(held), results)
        except InvalidRequestError as error:
            return (*[gr.skip()] * (1 + len(results_panel.shown)), note_html(error.user_text, "error"))
        sent.conversations.append(conversation)
        sent.arrived.set()
        return conversations.dump(conversation), *tools.results_shown_values(conversation), ""

    with gr.Blocks(analytics_enabled=False) as demo:
        holder = gr.JSON(conversations.dump(first), visible=False)
        panel = tools.layout()
        results_panel = tools.results_layout()
        problem = gr.HTML(elem_id="problem")
        tools.wire(panel, holder)
        tools.wire_results(results_panel, holder)
        shown = [holder, *results_panel.shown, problem]
        results_panel.send.click(send, [holder, *results_panel.results], shown, **DIRECT)
        holder_values = [*panel.shown, *results_panel.shown]

        def show(held: Any) -> tuple[Any, ...]:
            conversation = conversations.load(held)
            return *tools.shown_values(conversation), *tools.results_shown_values(conversation)

        demo.load(show, [holder], holder_values, **DIRECT)
    return demo


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def page(sent: Sent, chromium: Browser) -> Iterator[Page]:
    app = FastAPI()
    add_look(app)
    gr.mount_gradio_app(app, build(sent), path="/", theme=load_theme(), ssr_mode=False)
    mount: Any = app.routes[-1]
    app.state.page = mount.app
    with running(app, FakeBackend()) as url:
        page = chromium.new_page()
        page.goto(url)
        page.locator("#send-results").wait_for()
        yield page
        page.close()


def test_calls_are_shown_run_edited_and_sent(page: Page, sent: Sent) -> None:
    expect(page.locator("#call-1")).to_contain_text("Calls calculator")
    expect(page.locator("#call-2")).to_contain_text("<b>Bonn</b>")
    expect(page.locator("#call-3 .malformed")).to_contain_text("It ends too early.")
    expect(page.locator("#call-4")).to_be_hidden()
    expect(page.get_by_role("button", name="Run", exact=True)).to_have_count(1)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_label("Result 1")).to_have_value("42")
    page.get_by_label("Result 1").fill("43")
    page.get_by_label("Result 2").fill("rain")
    page.get_by_role("button", name="Send results").click()
    expect(page.locator("#problem")).to_contain_text("Result 3 is empty")
    expect(page.get_by_label("Result 1")).to_have_value("43")
    page.get_by_label("Result 3").fill("Error: unreadable")
    page.get_by_role("button", name="Send results").click()
    expect(page.locator("#tool-results")).to_be_hidden()
    assert sent.arrived.wait(2)
    turns = conversations.path(sent.conversations[-1])[2:]
    assert [(turn.name, turn.content) for turn in turns] == [
        ("calculator", "43"),
        ("weather", "rain"),
        ("", "Error: unreadable"),
    ]


def test_tools_are_defined_and_a_mistake_keeps_the_text(page: Page, sent: Sent) -> None:
    box = page.get_by_label("Tools")
    box.fill('[{"name": }]')
    box.blur()
    expect(page.locator("#tools-message .error")).to_contain_text("line 1, column 11")
    page.get_by_role("button", name="Use the examples").click()
    expect(page.locator("#tools-message .error")).to_contain_text("not JSON")
    expect(box).to_have_value('[{"name": }]')
    box.fill('[{"name": "weather"}]')
    box.blur()
    expect(page.locator("#tools-message")).to_contain_text("The model may call weather.")
    page.get_by_role("button", name="Use the examples").click()
    expect(box).to_have_value(re.compile("current_time"))
    for number in (1, 2, 3):
        page.get_by_label(f"Result {number}").fill("x")
    page.get_by_role("button", name="Send results").click()
    assert sent.arrived.wait(5)
    names = [spec.name for spec in parse_tools(sent.conversations[-1].tools)]
    assert names == ["weather", *(spec.name for spec in EXAMPLE_TOOLS)]
