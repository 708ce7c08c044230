"""Tests for the Chat tab in a browser, with a fake backend."""

import time

import pytest
from playwright.sync_api import Locator, Page, expect

from granite_demo.errors import EngineError
from granite_demo.types.messages import Message
from tests.browser.conftest import OpenPage
from tests.browser.frame import close_sheet, open_sheet
from tests.fakes import FakeBackend

pytestmark = pytest.mark.browser


def send(page: Page, text: str) -> None:
    page.locator("#message textarea").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def act(page: Page, action: str, index: int = -1) -> None:
    """Click a button under one of the messages that have it, by default the last one."""
    page.locator(f"#chatbot .act.{action}").nth(index).click()


def reload(page: Page) -> None:
    """Reload the page, after a delay in which the browser stores the conversation."""
    page.wait_for_timeout(1000)
    page.reload()


def answers(page: Page) -> Locator:
    return page.locator("#chatbot .bot.message")


def wait_idle(backend: FakeBackend) -> None:
    """Wait until no request runs. ``tests/load`` tests the time with a real engine."""
    deadline = time.monotonic() + 20
    while backend.running:
        time.sleep(0.02)
        assert time.monotonic() < deadline, "the request still runs"


def test_an_answer_streams_in_more_than_three_steps(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.allowed = [f"word{n} " for n in range(12)], 0
    send(page, "Hello")
    for count in (1, 2, 5, 11):
        fake.allowed = count
        expect(answers(page)).to_contain_text(f"word{count - 1}")
        expect(answers(page)).not_to_contain_text("finished")
    fake.allowed = 12
    expect(answers(page)).to_contain_text("word11")
    expect(answers(page)).to_contain_text("12 tokens · 0.10 s to first token · ")
    expect(answers(page)).to_contain_text("tokens/s · finished (stop)")


def test_enter_sends_and_the_box_is_emptied(page: Page, fake: FakeBackend) -> None:
    box = page.locator("#message textarea")
    box.fill("Hello")
    box.press("Enter")
    expect(answers(page)).to_contain_text("Hello world!")
    expect(box).to_have_value("")
    assert fake.requests[-1].messages == (Message("user", "Hello"),)


@pytest.mark.release
def test_an_empty_message_sends_nothing(page: Page, fake: FakeBackend) -> None:
    send(page, "   ")
    page.wait_for_timeout(500)
    assert fake.requests == []


def test_stop_keeps_the_text_and_frees_the_engine(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word "] * 1000, 0.05
    send(page, "Hello")
    expect(answers(page)).to_contain_text("word word")
    page.get_by_role("button", name="Stop").click()
    wait_idle(fake)
    expect(answers(page)).to_contain_text("stopped")
    expect(answers(page)).to_contain_text("word word")
    fake.words, fake.delay = ["second"], 0.0
    send(page, "Again")
    expect(answers(page).last).to_contain_text("second")
    roles = [message.role for message in fake.requests[-1].messages]
    assert roles == ["user", "assistant", "user"]
    assert set(fake.requests[-1].messages[1].content.split()) == {"word"}


def test_stop_before_the_first_token(page: Page, fake: FakeBackend) -> None:
    fake.first_delay = 60
    send(page, "Hello")
    expect(answers(page)).to_contain_text("Waiting for the first token")
    page.get_by_role("button", name="Stop").click()
    wait_idle(fake)
    expect(answers(page)).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


@pytest.mark.release
def test_retry_generates_another_answer(page: Page, fake: FakeBackend) -> None:
    send(page, "Hello")
    expect(answers(page)).to_contain_text("finished")
    fake.words = ["Another"]
    act(page, "retry")
    expect(answers(page)).to_contain_text("Another")
    expect(answers(page)).to_have_count(1)
    assert fake.requests[-1].messages == (Message("user", "Hello"),)


@pytest.mark.release
def test_edit_asks_again_from_there(page: Page, fake: FakeBackend) -> None:
    for count, text in enumerate(("First", "Second"), 1):
        send(page, text)
        expect(page.locator("#chatbot .act.retry")).to_have_count(count)
    act(page, "edit", 0)
    expect(page.locator("#chatbot .editor textarea")).to_have_value("First")
    expect(page.locator("#chatbot .editor textarea")).to_be_focused()
    page.locator("#chatbot .editor textarea").fill("Changed")
    page.locator("#chatbot .editor .primary").click()
    expect(answers(page)).to_have_count(1)
    expect(answers(page)).to_contain_text("finished")
    assert fake.requests[-1].messages == (Message("user", "Changed"),)
    expect(page.locator("#chatbot .editor")).to_be_hidden()


@pytest.mark.release
def test_a_new_chat_is_empty_and_the_old_one_is_kept(page: Page, fake: FakeBackend) -> None:
    send(page, "Hello")
    expect(answers(page)).to_contain_text("finished")
    page.get_by_role("button", name="New chat").click()
    expect(answers(page)).to_have_count(0)
    send(page, "Fresh")
    expect(answers(page)).to_contain_text("finished")
    assert fake.requests[-1].messages == (Message("user", "Fresh"),)
    page.locator("#library").get_by_text("Hello").click()
    expect(page.locator("#chatbot .user.message")).to_contain_text("Hello")


@pytest.mark.release
def test_a_deleted_conversation_is_gone_after_a_reload(page: Page) -> None:
    send(page, "Hello")
    expect(page.locator("#chatbot .act.retry")).to_be_visible()
    page.locator("#library").get_by_role("button", name="More").click()
    page.locator("#library").get_by_role("button", name="Delete").click()
    page.locator("#library").get_by_role("button", name="Delete").last.click()
    expect(answers(page)).to_have_count(0)
    reload(page)
    page.locator("#message textarea").wait_for()
    page.wait_for_timeout(500)
    expect(answers(page)).to_have_count(0)


@pytest.mark.release
def test_the_system_prompt_is_sent_and_kept(page: Page, fake: FakeBackend) -> None:
    open_sheet(page, "system")
    page.locator("#system-prompt textarea").fill("Answer in French.")
    close_sheet(page)
    send(page, "Hello")
    expect(answers(page)).to_contain_text("finished")
    assert fake.requests[-1].messages == (Message("system", "Answer in French."), Message("user", "Hello"))
    reload(page)
    expect(page.locator("#chips")).to_contain_text("System prompt")
    expect(page.locator("#system-prompt textarea")).to_have_value("Answer in French.")


def test_a_reload_keeps_the_conversation(page: Page, fake: FakeBackend) -> None:
    send(page, "Hello")
    expect(page.locator("#chatbot .act.retry")).to_be_visible()
    reload(page)
    expect(answers(page)).to_contain_text("Hello world!")
    send(page, "More")
    expect(answers(page)).to_have_count(2)
    expect(answers(page).last).to_contain_text("finished")
    assert [message.content for message in fake.requests[-1].messages] == ["Hello", "Hello world!", "More"]


@pytest.mark.release
def test_a_closed_tab_frees_the_engine_before_the_first_token(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.first_delay = 60
    page = open_page()
    send(page, "Hello")
    expect(answers(page)).to_contain_text("Waiting for the first token")
    page.close()
    wait_idle(fake)


def test_an_error_keeps_the_text_and_the_next_message_works(page: Page, fake: FakeBackend) -> None:
    fake.error = EngineError("The model ran out of memory. Use a shorter prompt.")
    send(page, "Hello")
    expect(answers(page)).to_contain_text("Hello world!")
    expect(page.locator("#chatbot .error")).to_contain_text("The model ran out of memory.")
    fake.error = None
    send(page, "Again")
    expect(answers(page).last).to_contain_text("finished")


@pytest.mark.release
def test_an_unexpected_error_shows_an_id_and_no_secret(page: Page, fake: FakeBackend) -> None:
    fake.error = RuntimeError("hf_SECRETTOKEN")
    send(page, "Hello")
    expect(page.locator("#chatbot .error")).to_contain_text("Something went wrong")
    assert "SECRET" not in page.content()


def test_markdown_code_and_latex(page: Page, fake: FakeBackend) -> None:
    fake.words = ["**bold**\n\n```python\ndef f(): return 1\n```\n\n", "\\(x^2\\) and $$\\sum_i i$$ for $5 or $6"]
    send(page, "Hello")
    answer = answers(page)
    expect(answer.locator("strong", has_text="bold")).to_be_visible()
    expect(answer.locator("pre .token.keyword", has_text="def")).to_be_visible()
    expect(answer.locator(".katex").first).to_be_visible()
    expect(answer).to_contain_text("for $5 or $6")
    expect(answer.locator(".katex-display")).to_have_count(1)


@pytest.mark.release
def test_all_characters_are_shown_as_text(page: Page, fake: FakeBackend) -> None:
    fake.words = ["Use vector<int> and <div> or <T>, a<b. ", "`x<y>`"]
    send(page, "What is <b>this</b> in vector<int>?")
    expect(answers(page)).to_contain_text("Use vector<int> and <div> or <T>, a<b. x<y>")
    expect(page.locator("#chatbot .user.message")).to_contain_text("What is <b>this</b> in vector<int>?")


def test_markup_of_the_model_has_no_effect(page: Page, fake: FakeBackend) -> None:
    outside: list[str] = []
    page.on("response", lambda response: outside.append(response.url) if "127.0.0.1" not in response.url else None)
    fake.words = [
        "<img src=x onerror='window.pwned=1'>",
        "<scr",
        "ipt>window.pwned=1</script>",
        "[a](javascript:alert(1)) ![p](http://192.0.2.1/p.png) <form action='http://192.0.2.1/'><input></form>",
        "<div style='position:fixed;inset:0'>cover</div>",
    ]
    fake.error = EngineError("<img src=x onerror='window.pwned=1'>")
    send(page, "<img src=x onerror='window.pwned=1'>")
    expect(page.locator("#chatbot .error")).to_contain_text("<img src=x")
    page.wait_for_timeout(300)
    assert page.evaluate("window.pwned") is None
    assert page.locator("#chatbot a[href^='javascript'], #chatbot form, #chatbot [style*=fixed]").count() == 0
    assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []


def test_a_picture_of_an_answer_is_a_link_and_loads_nothing(page: Page, fake: FakeBackend) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    fake.words = ["![there](http://192.0.2.1/p.png) ![here](/logout)"]
    send(page, "Hello")
    expect(answers(page)).to_contain_text("finished")
    page.wait_for_timeout(500)
    expect(answers(page).get_by_role("link", name="there")).to_be_visible()
    assert not [url for url in asked if "192.0.2.1" in url or "logout" in url]


@pytest.mark.release
def test_two_visitors_do_not_see_each_other(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word "] * 100, 0.1
    one, two = open_page(), open_page()
    send(one, "canary-one")
    send(two, "canary-two")
    expect(answers(one)).to_contain_text("word")
    expect(answers(two)).to_contain_text("word")
    one.get_by_role("button", name="Stop").click()
    expect(answers(one)).to_contain_text("stopped")
    expect(answers(two)).to_contain_text("finished")
    assert "canary-two" not in one.content()
    assert "canary-one" not in two.content()


@pytest.mark.release
def test_a_width_of_390_pixels_needs_no_horizontal_scrolling(open_page: OpenPage, fake: FakeBackend) -> None:
    page = open_page(viewport={"width": 390, "height": 844})
    fake.words = ["A very long line of code:\n```\n" + "x" * 300 + "\n```\n"]
    send(page, "Hello " * 30)
    expect(answers(page)).to_contain_text("finished")
    for tab in ("Chat", "Completion", "Settings"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("tab", name="Chat").click()
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
