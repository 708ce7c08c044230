"""Tests for the complete program: the sample model answers in a browser."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from granite_demo.backends.model_manager import ReadyModel
from tests.browser.frame import open_panel
from tests.browser.test_chat import act, answers, reload, send
from tests.sample_server import serving

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def url(ready_sample: ReadyModel) -> Iterator[str]:
    """Run the page with the sample model and its default engine."""
    with serving(ready_sample) as url:
        yield url


@pytest.fixture
def page(url: str, chromium: Browser) -> Iterator[Page]:
    page = chromium.new_page()
    page.goto(url)
    expect(page.locator("#model-status")).to_contain_text("SmolLM2 135M sample (not an IBM model)")
    yield page
    page.close()


def settled(page: Page, count: int = 1) -> None:
    expect(page.locator("#chatbot .act.retry")).to_have_count(count)


def test_the_sample_answers_in_the_browser(page: Page) -> None:
    send(page, "What is the capital of Germany?")
    expect(answers(page)).to_contain_text("Berlin")
    expect(answers(page)).to_contain_text("finished (stop)")
    page.get_by_role("tab", name="Settings").click()
    expect(page.locator("#facts")).to_contain_text("SmolLM2-135M-Instruct in the Granite architecture")
    expect(page.locator("#facts")).to_contain_text("Q4_1")


@pytest.mark.release
def test_a_complete_conversation_with_the_sample(page: Page) -> None:
    send(page, "What is the capital of Germany?")
    settled(page)
    expect(page.locator(".meter")).to_contain_text("used")
    act(page, "retry")
    expect(page.locator("#chatbot .versions")).to_have_text("2/2")
    settled(page)
    act(page, "edit", 0)
    page.locator("#chatbot .editor textarea").fill("What is the capital of Japan?")
    page.locator("#chatbot .editor .primary").click()
    expect(answers(page)).to_contain_text("Japan")
    settled(page)
    open_panel(page, "xray")
    page.get_by_role("button", name="Show the prompt").click()
    expect(page.locator("#xray-view")).to_contain_text("<|im_start|>")
    expect(page.locator("#xray-view")).to_contain_text("Japan")
    reload(page)
    expect(answers(page)).to_contain_text("Japan")
    with page.expect_download() as waiting:
        act(page, "bundle")
    saved = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert saved["format"] == "granite-demo-answer"


@pytest.mark.release
def test_four_visitors_are_answered_at_the_same_time(url: str, chromium: Browser) -> None:
    pages = [chromium.new_page() for _ in range(4)]
    for page in pages:
        page.goto(url)
        expect(page.locator("#model-status")).to_contain_text("SmolLM2 135M sample")
    for page in pages:
        send(page, "Write a very long story about a sailor and the sea.")
    deadline = time.monotonic() + 60
    started: set[int] = set()
    while len(started) < len(pages):
        assert time.monotonic() < deadline, f"only {len(started)} of four have text"
        shown = [answers(page).all_inner_texts() for page in pages]
        started |= {number for number, texts in enumerate(shown) if "sailor" in "".join(texts)}
        assert not any("finished" in text for texts in shown for text in texts), "one has ended before all have begun"
    for page in pages:
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(answers(page)).to_contain_text("stopped")
        page.close()
