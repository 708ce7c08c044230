"""Tests that the page has the language of the browser, and that other text is not translated."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.fakes import FakeBackend

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("locale", "tab", "send", "retry"),
    [
        pytest.param("de-AT", "Einstellungen", "Senden", "Wiederholen", marks=pytest.mark.release),
        ("cs", "Nastavení", "Odeslat", "Zkusit znovu"),
    ],
    ids=["known to Gradio", "unknown to Gradio"],
)
def test_the_page_has_the_language_of_the_browser(
    open_page: OpenPage, fake: FakeBackend, locale: str, tab: str, send: str, retry: str
) -> None:
    page = open_page(locale=locale)
    page.get_by_role("tab", name=tab).wait_for()
    page.locator("#message textarea").fill("Settings")
    page.get_by_role("button", name=send).click()
    page.locator("#chatbot").get_by_role("button", name=retry).wait_for()
    # The text of the visitor is equal to a label of the page, and must not be translated.
    expect(page.locator("#chatbot .user-row").get_by_text("Settings", exact=True)).to_be_visible()
    named = page.locator("#library").get_by_role("button", name="Settings", exact=True)
    expect(named).to_be_visible()
    expect(named).to_have_attribute("title", "Settings")
    assert page.evaluate("document.documentElement.lang") == locale[:2]


def test_an_answer_is_not_translated(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.words = ["Stop"]
    page = open_page(locale="es")
    page.locator("#message textarea").fill("?")
    page.keyboard.press("Enter")
    expect(page.locator("#chatbot .acts .retry")).not_to_have_text("Retry")
    expect(page.locator("#chatbot .bot-row .md").first).to_have_text("Stop")


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.release)])
def test_arabic_goes_from_right_to_left(open_page: OpenPage, width: int) -> None:
    page = open_page(locale="ar", viewport={"width": width, "height": 900})
    expect(page.locator("html")).to_have_attribute("dir", "rtl")
    page.locator("#message textarea").fill("مرحبا، كيف الحال؟\n\nplain English")
    page.keyboard.press("Enter")
    page.locator("#chatbot .acts .retry").wait_for()
    direction = "(box) => { const end = (element) => element.getBoundingClientRect(); return end(box).right; }"
    if width == 390:
        page.locator("#head [data-side]").click()
    tabs = [tab.evaluate(direction) for tab in page.locator("#tabs > .tab-wrapper [role=tab]:visible").all()]
    assert len(tabs) >= 2
    assert tabs == sorted(tabs, reverse=True)
    note = page.locator("#chatbot .bot-row .note")
    assert note.evaluate("(one) => getComputedStyle(one).direction") == "rtl"
    # Nothing is outside the page, so there is no horizontal scrolling.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    written = page.locator("#chatbot .user-row").get_by_text("plain English")
    assert written.evaluate("(one) => getComputedStyle(one).unicodeBidi") == "plaintext"


@pytest.mark.release
def test_english_loads_no_words(open_page: OpenPage) -> None:
    page = open_page(locale="en-GB")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.get_by_role("tab", name="Settings").wait_for()
    assert page.evaluate("document.documentElement.dir") == ""
    assert not [url for url in asked if "/words/" in url]
