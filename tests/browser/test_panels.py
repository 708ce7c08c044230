"""Tests for the context meter, Prompt X-ray, Side by side and keyboard use in a browser, on a small page."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped, unused-ignore]
from fastapi import FastAPI
from playwright.sync_api import Page, expect

from granite_demo.errors import ContextOverflowError
from granite_demo.server.run import running
from granite_demo.types.messages import Controls, Message
from granite_demo.types.prompt_view import PromptPart
from granite_demo.ui.theme import load_theme
from tests.browser.conftest import NewContext
from tests.browser.frame import add_look
from tests.browser.panels_page import THINKS, VIEW, build, script
from tests.fakes import FakeBackend

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def panels_server() -> Iterator[tuple[FakeBackend, str]]:
    backend = FakeBackend()
    app = FastAPI()
    add_look(app)
    mounted: Any = gr.mount_gradio_app(app, build(backend), path="/", theme=load_theme(), ssr_mode=False)
    route: Any = app.routes[-1]
    app.state.page = route.app
    with running(mounted, backend) as url:
        yield backend, url


@pytest.fixture
def fake(panels_server: tuple[FakeBackend, str]) -> FakeBackend:
    backend, _ = panels_server
    backend.__init__()  # type: ignore[misc]
    backend.state, backend.view = THINKS, VIEW
    return backend


@pytest.fixture
def panels(new_context: NewContext, fake: FakeBackend, panels_server: tuple[FakeBackend, str]) -> Page:
    """Return the page of one visitor."""
    page = new_context(viewport={"width": 1280, "height": 900}).new_page()
    visit(page, panels_server[1])
    return page


def visit(page: Page, url: str) -> None:
    page.goto(url)
    page.locator("#message textarea").wait_for()
    page.locator("#chatbot .bot.message").first.wait_for()


@pytest.mark.release
def test_the_meter_follows_the_text_without_a_request_for_each_key(panels: Page, fake: FakeBackend) -> None:
    fake.inspected.clear()
    panels.locator("#message textarea").press_sequentially("How much is it?", delay=60)
    words = panels.locator("#meter-bar")
    expect(words).to_contain_text("9 used · 512 reserved for the answer · 479 free of 1,000")
    panels.wait_for_timeout(1200)
    assert fake.inspected[-1].messages == (Message("user", "How much is it?"),)
    assert len(fake.inspected) <= 5


def test_the_meter_shows_an_overflow(panels: Page, fake: FakeBackend) -> None:
    fake.view_error = ContextOverflowError(1200, 1000)
    panels.locator("#message textarea").fill("Long")
    expect(panels.locator(".meter.over")).to_contain_text("1,200 used of 1,000")
    expect(panels.locator(".meter-warning")).to_contain_text("will be refused")


@pytest.mark.release
def test_the_choice_for_an_overflow_changes_the_meter(panels: Page, fake: FakeBackend) -> None:
    panels.locator("#message textarea").fill("Long")
    expect(panels.locator("#meter-bar")).to_contain_text("9 used")
    fake.view = replace(VIEW, dropped=3)
    panels.get_by_label("Leave out the oldest messages").check()
    expect(panels.locator(".meter-warning")).to_contain_text("the oldest 3 messages will be left out")
    assert fake.inspected[-1].overflow == "drop"


def test_the_x_ray_shows_tokens_ids_and_what_changed(panels: Page, fake: FakeBackend) -> None:
    panels.locator("#message textarea").fill("Hi")
    panels.locator("#xray-show").click()
    view = panels.locator("#xray-view")
    expect(view.locator(".tokens b")).to_have_count(9)
    expect(view.locator("b.o-user", has_text="<b>↵")).to_have_attribute("title", "11")
    expect(view.locator(".legend")).to_contain_text("control tokens 1")
    expect(panels.locator("#xray-text textarea")).to_have_value("<|role|>Be kind.Hi <b>\nDocToolYes\n")
    expect(panels.locator("#xray-difference")).to_have_text("")
    view.get_by_label("Token ids").check()
    shown = "element => getComputedStyle(element, '::after').content"
    assert view.locator("b.o-control").evaluate(shown) == '"7"'
    panels.locator("#xray-show").click()
    expect(panels.locator("#xray-difference")).to_contain_text("nothing changed")
    parts = (*VIEW.parts[:1], PromptPart("system", "Think.", ((99, "Think."),)), *VIEW.parts[2:])
    fake.view = replace(VIEW, parts=parts)
    panels.locator("#xray-show").click()
    expect(panels.locator("#xray-difference ins")).to_have_text("Think.")
    expect(panels.locator("#xray-difference del")).to_have_text("Be kind.")


def test_side_by_side_streams_both_answers_and_shows_the_difference(panels: Page, fake: FakeBackend) -> None:
    fake.script, fake.delay = script(8, thoughts=4), 0.3
    panels.locator("#compare-question textarea").fill("Why?")
    panels.get_by_label("Thinking").last.click()
    panels.get_by_role("option", name="full").click()
    panels.locator("#compare-b").get_by_label("Seed").fill("7")
    panels.locator("#compare-run").click()
    expect(panels.locator("#answer-a")).to_contain_text("word1")
    expect(panels.locator("#answer-b")).to_contain_text("word1")
    expect(panels.locator("#compare-difference")).to_contain_text("The answers are the same, letter by letter.")
    expect(panels.locator("#costs-b")).to_contain_text("Tokens12")
    panels.get_by_role("button", name="Thinking · 4 tokens").first.click()
    expect(panels.get_by_text("Hmm").first).to_be_visible()
    assert {(request.controls, request.sampling.seed) for request in fake.requests} == {
        (Controls(), None),
        (Controls(thinking="full"), 7),
    }
    assert {request.model for request in fake.requests} == {None}


@pytest.mark.release
def test_side_by_side_stops_both(panels: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word "] * 1000, 0.05
    panels.locator("#compare-question textarea").fill("Why?")
    panels.locator("#compare-run").click()
    expect(panels.locator("#answer-b")).to_contain_text("word word")
    panels.locator("#compare-stop").click()
    expect(panels.locator("#costs-a")).to_contain_text("stopped")
    expect(panels.locator("#costs-b")).to_contain_text("stopped")
    expect(panels.locator("#compare-run")).to_be_visible()
    assert fake.running == 0


@pytest.mark.release
def test_escape_stops_the_answer(panels: Page) -> None:
    ask(panels)
    expect(panels.locator("#said")).to_have_text("The model answers.")
    assert panels.locator("#chatbot [role=log]").get_attribute("aria-busy") == "true"
    panels.keyboard.press("Escape")
    expect(panels.locator("#message .stop-button")).to_have_count(0)
    expect(panels.locator("#said")).to_have_text("Answer finished.")
    assert panels.locator("#chatbot [role=log]").get_attribute("aria-busy") == "false"


def ask(page: Page) -> None:
    box = page.locator("#message textarea")
    box.fill("Second")
    box.press("Enter")
    expect(page.locator("#chatbot")).to_contain_text("Line 3")


@pytest.mark.release
def test_arrow_up_in_the_empty_box_edits_the_last_question(panels: Page) -> None:
    box = panels.locator("#message textarea")
    box.fill("Draft")
    box.press("ArrowUp")
    panels.wait_for_timeout(300)
    expect(panels.locator("#chatbot .edit-textarea")).to_have_count(0)
    box.fill("")
    box.press("ArrowUp")
    editor = panels.locator("#chatbot .edit-textarea")
    expect(editor).to_be_focused()
    expect(editor).to_have_value("First")
    expect(editor).to_have_attribute("aria-label", "Edit the message")


@pytest.mark.release
def test_scrolling_up_stops_the_automatic_scrolling_until_the_end_is_reached(panels: Page) -> None:
    ask(panels)
    gap = "e => e.scrollHeight - e.clientHeight - e.scrollTop"
    log = panels.locator("#chatbot [role=log]")
    expect(log).to_contain_text("Line 15")
    log.hover()
    panels.mouse.wheel(0, -200)
    expect(log).to_contain_text("Line 30")
    assert log.evaluate(gap) > 300
    for _ in range(3):
        panels.mouse.wheel(0, 5000)
        panels.wait_for_timeout(200)
    expect(log).to_contain_text("Line 59")
    panels.wait_for_timeout(500)
    assert log.evaluate(gap) < 60


@pytest.mark.parametrize("name", ["q", pytest.param("prompt", marks=pytest.mark.release)])
def test_a_link_fills_the_box_and_sends_nothing(
    panels: Page, panels_server: tuple[FakeBackend, str], name: str, fake: FakeBackend
) -> None:
    visit(panels, f"{panels_server[1]}/?{name}=What%20is%20%3Cb%3E%3F&__theme=dark")
    expect(panels.locator("#message textarea")).to_have_value("What is <b>?")
    expect(panels.locator("#meter-bar")).to_contain_text("9 used")
    assert fake.inspected[-1].messages[-1].content == "What is <b>?"
    assert panels.url == f"{panels_server[1]}/?__theme=dark"
    expect(panels.locator("#chatbot .user-row")).to_have_count(1)
    assert fake.requests == []


@pytest.mark.release
def test_a_link_to_a_footnote_opens_it(panels: Page) -> None:
    panels.get_by_role("button", name="Footnote").click()
    note = panels.locator("#note-1")
    note.wait_for()
    expect(note).not_to_have_attribute("open", "")
    panels.get_by_role("link", name="[1]").click()
    expect(note).to_have_attribute("open", "")
    expect(panels.locator("#chatbot summary")).to_be_focused()
    assert "note-1" not in panels.url


@pytest.mark.release
def test_math_is_shown_and_prices_are_not_math(panels: Page) -> None:
    panels.get_by_role("button", name="Math").click()
    answer = panels.locator("#chatbot .bot.message")
    expect(answer.locator(".katex")).to_have_count(1)
    expect(answer).to_contain_text("costs $5, not $6, in $y$.")


@pytest.mark.parametrize(
    ("theme", "width"), [pytest.param("light", 1280, marks=pytest.mark.release), ("dark", 390)], ids=["light", "dark"]
)
def test_accessibility_of_the_panels(
    panels: Page, panels_server: tuple[FakeBackend, str], fake: FakeBackend, theme: str, width: int
) -> None:
    panels.set_viewport_size({"width": width, "height": 900})
    visit(panels, f"{panels_server[1]}/?__theme={theme}")
    fill_panels(panels, fake)
    panels.mouse.move(0, 0)
    panels.wait_for_timeout(300)
    found = Axe().run(panels, context={"include": [["#meter-bar"], ["#xray"], ["#compare"], ["#message"], ["#said"]]})
    bad = [fault for fault in found.response["violations"] if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], [node["target"] for node in fault["nodes"]]) for fault in bad] == []
    assert panels.evaluate("document.documentElement.scrollWidth") <= width


def fill_panels(page: Page, fake: FakeBackend) -> None:
    """Open each panel with some content."""
    fake.script = script(30, thoughts=4)
    page.locator("#message textarea").fill("Hi")
    page.locator("#xray-show").click()
    expect(page.locator("#xray-view b")).to_have_count(9)
    fake.view = replace(
        VIEW, parts=(*VIEW.parts[:1], PromptPart("system", "Think.", ((99, "Think."),)), *VIEW.parts[2:])
    )
    page.locator("#xray-show").click()
    expect(page.locator("#xray-difference ins")).to_be_visible()
    page.locator("#compare-question textarea").fill("Why?")
    page.locator("#compare-run").click()
    expect(page.locator("#compare-difference")).to_contain_text("The answers")
