"""Tests that an answer with a lost connection keeps its text, and that the conversation can continue."""

import time
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from granite_demo.chat import conversation as conversations
from granite_demo.types.messages import Message
from tests.browser.conftest import OpenPage
from tests.browser.test_chat import answers, send
from tests.browser.test_conversation import settled
from tests.fakes import FakeBackend

pytestmark = pytest.mark.browser

LOST_STREAMS = """
const plain = window.fetch;
window.fetch = async (...given) => {
  const response = await plain(...given);
  if (!String(given[0]?.url ?? given[0]).includes("queue/data")) return response;
  const reader = response.body.getReader();
  const body = new ReadableStream({
    async pull(sink) {
      const { done, value } = await reader.read();
      if (window.lost) {
        reader.cancel();
        return window.lost === "hangs" ? new Promise(() => {}) : sink.error(new TypeError("network error"));
      }
      if (done) return sink.close();
      sink.enqueue(value);
    },
  });
  return new Response(body, { status: response.status, headers: response.headers });
};
"""
"""After ``window.lost`` is set, no part of an answer arrives: its stream fails or hangs."""


def test_a_question_that_the_server_rejects_remains_in_the_box(page: Page, fake: FakeBackend) -> None:
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "Queue is full."}))
    send(page, "Hello")
    expect(page.locator(".toast-wrap")).to_contain_text("currently busy")
    expect(page.locator("#message textarea")).to_have_value("Hello")
    expect(answers(page)).to_have_count(0)
    page.unroute("**/queue/join*")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(answers(page)).to_contain_text("finished")
    settled(page)
    assert [request.messages for request in fake.requests] == [(Message("user", "Hello"),)]


@pytest.mark.parametrize("how", ["broken", pytest.param("hangs", marks=pytest.mark.release)])
def test_an_answer_with_a_lost_connection_is_read_to_its_end(open_page: OpenPage, fake: FakeBackend, how: str) -> None:
    page = open_page()
    page.add_init_script(LOST_STREAMS)
    page.reload()
    page.locator("#model-status .status").wait_for()
    fake.words, fake.delay = [f"word{number} " for number in range(120)], 0.05
    send(page, "Hello")
    expect(answers(page)).to_contain_text("word9 ")
    page.evaluate("how => { window.lost = how; }", how)
    if how == "broken":
        page.wait_for_function("window.lost === undefined")  # the page was reloaded, because Gradio cannot continue
    expect(answers(page)).to_contain_text("word119")
    settled(page)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    fake.words, fake.delay = ["fine"], 0.0
    if how == "hangs":
        page.reload()
        page.locator("#model-status .status").wait_for()
    send(page, "And now?")
    until(lambda: len(fake.requests) == 2)
    said = fake.requests[-1].messages
    assert [message.role for message in said] == ["user", "assistant", "user"]
    assert said[1].content.split() == [f"word{number}" for number in range(120)]


@pytest.mark.release
def test_stop_reaches_an_answer_with_a_dead_connection(open_page: OpenPage, fake: FakeBackend) -> None:
    page = open_page()
    page.add_init_script(LOST_STREAMS)
    page.reload()
    page.locator("#model-status .status").wait_for()
    fake.words, fake.delay = ["word "] * 1000, 0.05
    send(page, "Hello")
    expect(answers(page)).to_contain_text("word word")
    page.evaluate("window.lost = 'hangs'")
    page.get_by_role("button", name="Stop").click()
    until(lambda: not fake.running)
    expect(answers(page)).to_contain_text("stopped")


def until(true: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_patch_only_adds_turns(page: Page) -> None:
    merge = """([held, patch]) => { const done = window.graniteDemo.merged(held, patch);
      return [done, done === held]; }"""
    before = conversations.start(title="Old name")
    asked = conversations.add(before, "user", content="Why?")
    made = {"finish_reason": "stop", "token_ids": [1, 2]}
    answered = conversations.add(asked, "assistant", content="So it is.", made=made)
    held = {**conversations.dump(before), "title": "New name", "system": "Brief."}
    done, same = page.evaluate(merge, [held, conversations.patch(before, asked)])
    assert not same
    assert (done["title"], done["system"], done["head"]) == ("New name", "Brief.", asked.head)
    # The patch of an answer also has the question, because the browser can miss the patch before it.
    for copy in (held, done):
        whole, _ = page.evaluate(merge, [copy, {**conversations.patch(before, answered), "state": ""}])
        assert (whole["system"], whole["head"], list(whole["turns"])) == ("Brief.", answered.head, list(answered.turns))
        assert whole["turns"][answered.head]["made"] == {"kept": True, "finish_reason": "stop", "tokens": 2}
        assert "state" not in whole
    assert page.evaluate(merge, [conversations.dump(conversations.start()), conversations.patch(before, asked)])[1]
    branch = conversations.branch(answered, asked.head or "")
    shown, _ = page.evaluate(merge, [whole, conversations.patch(answered, branch)])
    assert conversations.load(shown) == branch
