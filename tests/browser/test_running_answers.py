"""Tests that an answer goes on without its page, and that no word that was on the screen is lost."""

import re

import pytest
from playwright.sync_api import Page, expect

from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.types.messages import Message
from tests.browser.conftest import NewContext, OpenPage, stored
from tests.browser.test_chat import act, answers, send
from tests.browser.test_conversation import settled
from tests.browser.test_lost import until
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser

WORDS = [f"word{number} " for number in range(100)]


def writing(page: Page) -> None:
    """Wait until an answer has some words."""
    expect(answers(page).last).to_contain_text("word5 ")


def last_word(page: Page) -> int:
    return int(re.findall(r"word(\d+) ", answers(page).last.inner_text())[-1])


def open_listed(page: Page, title: str) -> None:
    page.locator("#library .title", has_text=title).click()


def begin_new(page: Page) -> None:
    page.get_by_role("button", name="New chat").click()
    expect(answers(page)).to_have_count(0)


def test_an_answer_goes_on_in_its_conversation(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.allowed = WORDS, 20
    send(page, "First")
    writing(page)
    begin_new(page)
    expect(page.locator("#library .writing")).to_have_count(1)
    fake.words = ["fine"]
    send(page, "Second")
    settled(page)
    expect(answers(page)).not_to_contain_text("word")
    assert fake.running == 1
    open_listed(page, "First")
    writing(page)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()  # it is live again
    fake.allowed = 50
    expect(answers(page)).to_contain_text("word49")
    fake.allowed = 100
    expect(answers(page)).to_contain_text("word99")
    settled(page)
    expect(page.locator("#library .writing")).to_have_count(0)
    open_listed(page, "Second")
    expect(answers(page)).to_contain_text("fine")
    assert [request.messages for request in fake.requests] == [
        (Message("user", "First"),),
        (Message("user", "Second"),),
    ]


@pytest.mark.release
def test_an_answer_that_ends_elsewhere_is_kept_in_its_conversation(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = WORDS[:40], 0.05
    send(page, "First")
    writing(page)
    begin_new(page)
    until(lambda: not fake.running)
    expect(page.locator("#library .writing")).to_have_count(0)
    [kept] = stored(page)
    assert "word39" in str(kept)
    assert "interrupted" not in str(kept)
    page.reload()  # a new chat was open
    open_listed(page, "First")
    settled(page)
    expect(answers(page)).to_contain_text("word39")


@pytest.mark.release
def test_stop_ends_the_answer_that_is_shown(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word5 "] * 1000, 0.05
    send(page, "First")
    writing(page)
    begin_new(page)
    send(page, "Second")
    writing(page)
    page.get_by_role("button", name="Stop").click()
    until(lambda: fake.running == 1)
    open_listed(page, "First")
    page.get_by_role("button", name="Stop").click()
    until(lambda: not fake.running)
    settled(page)


@pytest.mark.parametrize("how", ["reload", pytest.param("tab", marks=pytest.mark.release)])
def test_a_page_that_comes_back_reads_on(page: Page, fake: FakeBackend, how: str) -> None:
    fake.words, fake.delay = WORDS, 0.05
    send(page, "First")
    writing(page)
    if how == "tab":
        url, context = page.url, page.context
        page.close()
        page = context.new_page()
        page.goto(url)
    else:
        page.reload()
    expect(answers(page)).to_contain_text("word99")
    settled(page)
    assert len(fake.requests) == 1
    assert len(stored(page)[0]["conversation"]["turns"]) == 2


def test_a_restart_of_the_server_loses_no_word(new_context: NewContext) -> None:
    page = new_context().new_page()
    first = FakeBackend()
    first.state, first.words, first.delay = READY, WORDS, 0.05
    with running(create_app(first), first) as url:
        page.goto(url)
        page.locator("#model-status .status").wait_for()
        send(page, "First")
        writing(page)
        seen = last_word(page)
    again = FakeBackend()
    again.state = READY
    with running(create_app(again), again, port=int(url.rpartition(":")[2])):
        page.reload()
        page.locator("#model-status .status").wait_for()
        expect(answers(page)).to_contain_text(f"word{seen} ")
        expect(page.locator("#library .writing")).to_have_count(0)
        expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
        act(page, "go")
        until(lambda: again.requests)
        assert again.requests[-1].written_text.startswith("word0 ")
        assert f"word{seen} " in again.requests[-1].written_text


@pytest.mark.release
def test_a_deleted_conversation_ends_its_answer(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word5 "] * 1000, 0.05
    send(page, "First")
    writing(page)
    page.locator("#library").get_by_role("button", name="More").click()
    page.locator("#library").get_by_role("button", name="Delete").click()
    page.locator("#library").get_by_role("button", name="Delete").last.click()
    until(lambda: not fake.running)


@pytest.mark.release
def test_another_tab_shows_the_answer_of_this_one(page: Page, fake: FakeBackend, open_page: OpenPage) -> None:
    fake.words, fake.delay = WORDS, 0.05
    send(page, "First")
    writing(page)
    other = page.context.new_page()
    other.goto(page.url)
    expect(answers(other)).to_contain_text("word99")
    settled(other)
    settled(page)
