"""Tests for the frame of the page in a browser: what stays in view, the composer, the panels, the empty chat."""

from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from granite_demo.types.messages import Switches
from granite_demo.types.prompt_view import PromptView
from tests.browser.conftest import OpenPage
from tests.browser.frame import attach, open_panel, open_sheet
from tests.browser.test_chat import answers, send
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser

SHIFT = """() => new Promise((done) => {
  let sum = 0;
  new PerformanceObserver((list) => list.getEntries().forEach((one) => { if (!one.hadRecentInput) sum += one.value; }))
    .observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done(sum), 300);
})"""
DROP = """([name, type]) => {
  const data = new DataTransfer();
  data.items.add(new File(["The sky is blue."], name, { type }));
  const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  return !document.querySelector("#chatbot").dispatchEvent(event);
}"""


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (390, 844)])
def test_the_composer_stays_and_messages_have_the_room(
    open_page: OpenPage, fake: FakeBackend, width: int, height: int
) -> None:
    fake.words = ["A long answer.\n\n"] * 60
    page = open_page(viewport={"width": width, "height": height})
    page.wait_for_timeout(500)
    assert page.evaluate(SHIFT) < 0.1
    send(page, "Hello")
    expect(page.locator("#chatbot .act.retry")).to_be_attached()
    log = page.locator("#chatbot [role=log]")
    room = log.bounding_box()
    box = page.locator("#box").bounding_box()
    assert room
    assert box
    assert room["height"] >= 0.7 * height
    assert height - 20 <= box["y"] + box["height"] <= height
    assert page.evaluate("[scrollY, document.documentElement.scrollHeight <= innerHeight]") == [0, True]
    column = page.locator("#chatbot .bot-row").first.bounding_box()
    assert column
    assert column["width"] <= 760
    assert abs((column["x"] + column["width"] / 2) - (box["x"] + box["width"] / 2)) < 2


def test_what_is_attached_is_a_chip_with_a_cross(page: Page, fake: FakeBackend) -> None:
    attach(page, {"name": "sky.txt", "mimeType": "text/plain", "buffer": b"The sky is blue."})
    open_sheet(page, "tools")
    page.locator("#tool-examples").click()
    expect(page.locator("#chips .chip.tool")).to_have_count(2)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Remove calculator").click()
    expect(page.locator("#chips .chip.tool")).to_have_text(["current_time"])
    page.get_by_role("button", name="Remove sky.txt").click()
    expect(page.locator("#chips .chip")).to_have_count(1)
    send(page, "Hello")
    expect(answers(page)).to_contain_text("Hello world!")
    assert fake.requests[-1].documents == ()
    assert [tool.name for tool in fake.requests[-1].tools] == ["current_time"]


def test_a_dropped_file_is_attached_and_a_picture_is_refused(page: Page) -> None:
    assert page.evaluate(DROP, ["sky.txt", "text/plain"])
    expect(page.locator("#chips .chip.text")).to_contain_text("sky.txt")
    assert page.evaluate(DROP, ["cat.png", "image/png"])
    expect(page.locator("#documents-message .error")).to_contain_text("cat.png was not added")


def test_what_the_model_lacks_is_off_with_the_reason(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.state = replace(READY, switches=Switches())
    page = open_page()
    page.locator("#composer-menu .plus").click()
    expect(page.locator("#plus-menu .row.tool")).to_contain_text("has no place for tools")
    page.keyboard.press("Escape")
    assert page.evaluate(DROP, ["sky.txt", "text/plain"])
    expect(page.locator("#documents-message")).to_contain_text("has no place for documents")
    expect(page.locator("#empty .example").first).to_have_attribute("aria-disabled", "true")
    open_sheet(page, "switches")
    expect(page.locator("#thinking")).to_contain_text("has no switch for this")


def test_an_example_fills_the_box_and_sends_nothing(page: Page, fake: FakeBackend) -> None:
    page.get_by_role("button", name="Ask a document").click()
    expect(page.locator("#message textarea")).to_have_value("How long is the tenant's notice period?")
    expect(page.locator("#chips .chip.text")).to_contain_text("lease.txt")
    assert fake.requests == []
    page.get_by_role("button", name="Write JSON").click()
    expect(page.get_by_role("tab", name="Completion")).to_have_attribute("aria-selected", "true")


def test_one_panel_at_a_time_and_the_focus_comes_back(page: Page) -> None:
    open_panel(page, "sampling")
    open_panel(page, "xray")
    expect(page.locator("#sampling")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.locator("#xray")).to_be_hidden()
    expect(page.locator("#head [data-panel=xray]")).to_be_focused()


def test_the_meter_opens_its_detail(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.view = PromptView((), 512, 0, 8192)
    page = open_page()
    page.locator(".meter button").click()
    expect(page.locator("#meter-detail")).to_contain_text("512 used")
    expect(page.locator(".meter button")).to_contain_text("6 % of 8,192")
