"""Tests for messages that are written while an answer runs, and for the state of the server in the head of the page."""

import pytest
from playwright.sync_api import Page, expect

from granite_demo.errors import EngineError
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.types.events import Queued
from tests.browser.conftest import NewContext
from tests.browser.test_chat import answers, send
from tests.browser.test_conversation import settled
from tests.browser.test_lost import until
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser

WORDS = [f"word{number} " for number in range(20)]


def type_and_enter(page: Page, text: str) -> None:
    page.locator("#message textarea").fill(text)
    page.locator("#message textarea").press("Enter")


def begin(page: Page, fake: FakeBackend) -> None:
    """Ask, and wait for a part of an answer that does not end by itself."""
    fake.words, fake.allowed = WORDS, 10
    send(page, "First")
    expect(answers(page)).to_contain_text("word9 ")


def questions(fake: FakeBackend) -> list[str]:
    return [request.messages[-1].content for request in fake.requests]


def test_a_message_waits_for_the_end_of_the_answer(page: Page, fake: FakeBackend) -> None:
    begin(page, fake)
    for text in ("Second", "No", "Third"):
        type_and_enter(page, text)
    expect(page.locator("#queued .chip")).to_have_count(3)
    expect(page.locator("#queued")).to_contain_text("Sent when the answer ends")
    expect(page.locator("#message textarea")).to_have_value("")
    page.locator("#message textarea").fill("A draft")
    page.get_by_role("button", name="Remove No").click()
    assert questions(fake) == ["First"]
    fake.allowed = 100
    settled(page, 3)
    assert questions(fake) == ["First", "Second", "Third"]
    expect(page.locator("#queued")).to_be_hidden()
    expect(page.locator("#message textarea")).to_have_value("A draft")


@pytest.mark.release
@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_a_message_comes_back_after_an_answer_that_did_not_end(page: Page, fake: FakeBackend, how: str) -> None:
    fake.error = EngineError("The model ran out of memory.") if how == "failed" else None
    begin(page, fake)
    type_and_enter(page, "Second")
    expect(page.locator("#queued .chip")).to_have_count(1)
    if how == "stopped":
        page.get_by_role("button", name="Stop").click()
    fake.allowed = 100
    expect(page.locator("#message textarea")).to_have_value("Second")
    expect(page.locator("#queued")).to_be_hidden()
    assert questions(fake) == ["First"]


@pytest.mark.release
def test_a_waiting_message_stays_with_its_conversation(page: Page, fake: FakeBackend) -> None:
    begin(page, fake)
    type_and_enter(page, "Second")
    page.get_by_role("button", name="New chat").click()
    expect(answers(page)).to_have_count(0)
    expect(page.locator("#queued")).to_be_hidden()
    page.locator("#library .title", has_text="First").click()
    expect(page.locator("#queued .chip")).to_have_count(1)
    page.reload()
    expect(page.locator("#queued .chip")).to_have_count(1)
    fake.allowed = 100
    settled(page, 2)
    assert questions(fake) == ["First", "Second"]


def test_the_head_has_the_place_in_line(page: Page, fake: FakeBackend) -> None:
    fake.queued, fake.first_delay = [Queued(2)], 2.0
    send(page, "First")
    expect(page.locator("#server-state")).to_have_text("Busy: you have place 3 in line.")
    expect(page.locator("#server-state")).to_be_hidden()
    settled(page)


def test_the_head_shows_that_the_server_is_gone(new_context: NewContext) -> None:
    page = new_context().new_page()
    backend = FakeBackend()
    backend.state = READY
    with running(create_app(backend), backend) as url:
        page.goto(url)
        expect(page.locator("#model-status")).to_contain_text("Fake model")
        assert page.locator("#server-state").count() == 0
    expect(page.locator("#server-state")).to_contain_text("The server does not answer.")
    expect(page.locator("#model-status")).to_be_hidden()
    with running(create_app(backend), backend, port=int(url.rpartition(":")[2])):
        page.locator("#server-state").get_by_role("button", name="Try again").click()
        expect(page.locator("#server-state")).to_be_hidden()
        expect(page.locator("#model-status")).to_contain_text("Fake model")


@pytest.mark.release
def test_a_lost_server_loses_no_word_and_a_new_one_gets_the_next_message(new_context: NewContext) -> None:
    page = new_context().new_page()
    backend = FakeBackend()
    backend.state = READY
    with running(create_app(backend), backend) as url:
        page.goto(url)
        page.locator("#model-status .status").wait_for()
        begin(page, backend)
    expect(page.locator("#server-state")).to_contain_text("The server does not answer.")
    again = FakeBackend()
    again.state = READY
    with running(create_app(again), again, port=int(url.rpartition(":")[2])):
        expect(page.locator("#server-state")).to_be_hidden()
        expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
        expect(answers(page)).to_contain_text("word9 ")
        send(page, "Second")
        until(lambda: len(again.requests) == 1)
        assert "word9 " in again.requests[0].messages[1].content
