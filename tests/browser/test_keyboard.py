"""Tests for keys, focus and touch keyboards in a browser, with a fake backend."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_chat import answers
from tests.fakes import FakeBackend

pytestmark = pytest.mark.browser

LINES = "\n".join(f"Line {number}" for number in range(30))


def test_enter_makes_a_line_on_a_touch_keyboard(open_page: OpenPage, fake: FakeBackend) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    box = page.locator("#message textarea")
    box.tap()
    expect(box).to_have_attribute("enterkeyhint", "enter")
    page.keyboard.type("one")
    page.keyboard.press("Enter")
    page.keyboard.type("two")
    expect(box).to_have_value("one\ntwo")
    assert fake.requests == []
    page.get_by_role("button", name="Send", exact=True).tap()
    expect(answers(page)).to_contain_text("Hello world!")
    box.fill("three")
    box.press("Control+Enter")
    expect(answers(page)).to_have_count(2)
    assert [request.messages[-1].content for request in fake.requests] == ["one\ntwo", "three"]


def test_shift_and_enter_make_a_line(page: Page, fake: FakeBackend) -> None:
    box = page.locator("#message textarea")
    box.fill("one")
    box.press("Shift+Enter")
    box.press_sequentially("two")
    expect(box).to_have_value("one\ntwo")
    assert fake.requests == []
    box.press("Enter")
    expect(answers(page)).to_contain_text("Hello world!")
    assert fake.requests[-1].messages[0].content == "one\ntwo"


@pytest.mark.parametrize(
    ("width", "height"), [(390, 420), (844, 390), (1280, 800)], ids=["keyboard", "landscape", "desk"]
)
def test_a_long_question_keeps_send_in_view(open_page: OpenPage, width: int, height: int) -> None:
    page = open_page(viewport={"width": width, "height": height})
    box = page.locator("#message textarea")
    for text in ("", LINES):
        box.fill(text)
        page.wait_for_timeout(300)
        for part in (box, page.get_by_role("button", name="Send", exact=True), page.locator("#composer-menu .plus")):
            place = part.bounding_box()
            assert place
            assert place["y"] >= 0
            assert place["y"] + place["height"] <= height
    room = page.locator("#chatbot [role=log]").bounding_box()
    assert room
    assert room["height"] >= 0.25 * height
    assert box.evaluate("(box) => parseFloat(getComputedStyle(box).fontSize)") == 16
