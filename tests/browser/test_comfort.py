"""Tests for keyboard, deep link, panels and accessibility of the page in a browser, with a fake backend."""

from dataclasses import replace
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped, unused-ignore]
from playwright.sync_api import Page, expect

from granite_demo.types.events import ReasoningDelta, TextDelta, ToolCalled
from granite_demo.types.messages import Switches, ToolCall
from granite_demo.types.prompt_view import PromptPart, PromptView
from tests.browser.conftest import OpenPage
from tests.browser.frame import close_sheet, open_panel, open_sheet, open_tab
from tests.browser.test_chat import answers, reload, send, wait_idle
from tests.browser.test_conversation import END, settled
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser

VIEW = PromptView(
    (
        PromptPart("control", "<|start|>", ((1, "<|start|>"),)),
        PromptPart("user", "Why blue?", ((5, "Why"), (6, " blue?"))),
    ),
    512,
    0,
    8192,
)


def faults(page: Page) -> list[tuple[str, str]]:
    """Return the serious and critical violations that axe-core finds, as (rule, first element)."""
    # A CSS transition and a hover change the colours.
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        (fault["id"], fault["nodes"][0]["html"][:200]) for fault in found if fault["impact"] in ("serious", "critical")
    ]


def test_escape_stops_the_answer(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word "] * 1000, 0.05
    send(page, "Hello")
    expect(answers(page)).to_contain_text("word word")
    page.keyboard.press("Escape")
    wait_idle(fake)
    expect(answers(page)).to_contain_text("stopped")


@pytest.mark.release
def test_the_up_arrow_edits_the_last_question(page: Page, fake: FakeBackend) -> None:
    for count, text in enumerate(("First", "Second"), 1):
        send(page, text)
        settled(page, count)
    page.locator("#message textarea").press("ArrowUp")
    box = page.locator("#chatbot .editor textarea")
    expect(box).to_have_value("Second")
    expect(box).to_be_focused()


@pytest.mark.release
def test_escape_closes_the_editor_and_gives_the_focus_back(page: Page) -> None:
    send(page, "First")
    settled(page)
    page.locator("#message textarea").press("ArrowUp")
    page.locator("#chatbot .editor textarea").press("Escape")
    expect(page.locator("#chatbot .editor")).to_be_hidden()
    expect(page.locator("#message textarea")).to_be_focused()


@pytest.mark.release
def test_a_draft_is_kept_after_a_reload(page: Page) -> None:
    page.locator("#message textarea").press_sequentially("Not yet")
    page.reload()
    expect(page.locator("#message textarea")).to_have_value("Not yet")
    page.locator("#message textarea").press("Enter")
    settled(page)
    reload(page)
    expect(answers(page)).to_contain_text("Hello world!")
    expect(page.locator("#message textarea")).to_have_value("")


@pytest.mark.release
def test_a_link_can_contain_a_prompt(page: Page, fake: FakeBackend) -> None:
    page.goto(page.url.split("?")[0] + "?q=Why%20is%20the%20sky%20blue%3F")
    expect(page.locator("#message textarea")).to_have_value("Why is the sky blue?")
    expect(page).not_to_have_url("q=")
    assert fake.requests == []
    page.locator("#message textarea").press("Enter")
    settled(page)
    assert fake.requests[-1].messages[0].content == "Why is the sky blue?"


@pytest.mark.release
def test_formulas_prices_and_diagrams(page: Page, fake: FakeBackend) -> None:
    fake.words = [r"$E = mc^2$ and \[x_1\] cost $5 to $6." + "\n\n```mermaid\ngraph TD; A-->B;\n```\n"]
    send(page, "Hello")
    settled(page)
    expect(answers(page).locator(".katex")).to_have_count(2)
    expect(answers(page)).to_contain_text("cost $5 to $6.")
    expect(answers(page).locator("svg[id^=mermaid], .mermaid svg").first).to_be_visible()


@pytest.mark.release
def test_the_meter_shows_the_tokens_of_the_conversation(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.view = VIEW
    page = open_page()
    expect(page.locator(".meter")).to_contain_text("512 used")  # before the visitor types
    page.locator("#message textarea").press_sequentially("Hi")
    expect(page.locator(".meter")).to_contain_text("512 used")
    expect(page.locator(".meter")).to_contain_text("of 8,192")
    open_sheet(page, "overflow-sheet")
    page.get_by_text("Leave out the oldest messages").click()
    close_sheet(page)
    page.locator("#message textarea").press("Enter")
    settled(page)
    assert fake.requests[-1].overflow == "drop"


@pytest.mark.release
def test_the_prompt_is_shown_by_origin(page: Page, fake: FakeBackend) -> None:
    fake.view = VIEW
    send(page, "Why blue?")
    settled(page)
    open_panel(page, "xray")
    page.get_by_role("button", name="Show the prompt").click()
    expect(page.locator(".xray").first).to_contain_text("Why blue?")


@pytest.mark.release
def test_two_settings_answer_side_by_side(page: Page, fake: FakeBackend) -> None:
    open_panel(page, "compare")
    page.locator("#compare-question textarea").fill("Why?")
    page.locator("#compare-run").click()
    expect(page.locator("#compare")).to_contain_text("Hello world!")
    expect(page.locator("#compare").get_by_text("Hello world!")).to_have_count(2)
    assert [request.messages[-1].content for request in fake.requests] == ["Why?", "Why?"]


@pytest.mark.parametrize(
    ("theme", "width"), [pytest.param("light", 1280, marks=pytest.mark.release), ("dark", 390)], ids=["light", "dark"]
)
def test_axe_finds_no_serious_violation(open_page: OpenPage, fake: FakeBackend, theme: str, width: int) -> None:
    fake.state = replace(READY, switches=Switches(thinking=("off", "full"), citations=True, documents=True, tools=True))
    fake.view = VIEW
    page = open_page(f"?__theme={theme}", viewport={"width": width, "height": 900})
    assert faults(page) == [], "empty"
    call = ToolCalled(ToolCall("calculator", '{"expression": "1+1"}'))
    fake.script = [ReasoningDelta("Hm.", 2), TextDelta("**Blue**, `x`.\n\n```python\nx = 1\n```\n", 5), call, END]
    send(page, "Which colour?")
    settled(page)
    assert faults(page) == [], "a conversation"
    for name in ("documents", "tools", "system", "switches"):
        open_sheet(page, name)
        assert faults(page) == [], name
        close_sheet(page)
    for name in ("sampling", "xray", "compare"):
        open_panel(page, name)
        assert faults(page) == [], name
        page.locator(f"#{name} .close").click()
    for tab in ("Completion", "Settings"):
        open_tab(page, tab)
        assert faults(page) == [], tab
