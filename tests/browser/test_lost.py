"""Answers whose end never reaches the browser: what came of them stays, and can be gone on from."""

import time
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from granite_demo.types.messages import Message
from tests.browser.conftest import OpenPage
from tests.browser.test_chat import act, answers, send, until_kept
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
"""From when ``window.lost`` is set, nothing of an answer arrives: its stream is broken, or hangs."""


def test_an_answer_that_the_server_refuses_can_be_asked_again(page: Page, fake: FakeBackend) -> None:
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "Queue is full."}))
    send(page, "Hello")
    expect(page.locator("#chatbot .act.retry")).to_have_text("Ask again")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    page.unroute("**/queue/join*")
    act(page, "retry")
    expect(answers(page)).to_contain_text("finished")
    settled(page)
    assert [request.messages for request in fake.requests] == [(Message("user", "Hello"),)]


@pytest.mark.parametrize("how", ["broken", pytest.param("hangs", marks=pytest.mark.release)])
def test_what_came_of_a_lost_answer_is_gone_on_from(open_page: OpenPage, fake: FakeBackend, how: str) -> None:
    page = open_page()
    page.add_init_script(LOST_STREAMS)
    page.reload()
    page.locator("#model-status .status").wait_for()
    fake.words, fake.delay = ["word "] * 1000, 0.05
    send(page, "Hello")
    expect(answers(page)).to_contain_text("word word")
    until_kept(page, "word word")
    page.evaluate("how => { window.lost = how; }", how)
    until(lambda: not fake.running)
    if how == "hangs":
        page.get_by_role("button", name="Stop").click()
        expect(answers(page)).to_contain_text("interrupted")
    page.wait_for_function("window.lost === undefined")  # the page is loaded again: only so can Gradio go on
    expect(answers(page)).to_contain_text("interrupted")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    fake.words, fake.delay = ["fine"], 0.0
    send(page, "And now?")
    until(lambda: len(fake.requests) == 2)
    said = fake.requests[-1].messages
    assert [message.role for message in said] == ["user", "assistant", "user"]
    assert set(said[1].content.split()) == {"word"}


def until(true: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_answer_is_put_in_once_and_undoes_nothing(page: Page) -> None:
    settle = """([held, pending]) => { const done = window.graniteDemo.settled(held, pending);
      return [done, done === held]; }"""
    asked = {"id": "1", "head": "q", "turns": {"q": {"id": "q", "role": "user", "content": "Why?"}}, "system": "Brief."}
    answer = {"id": "a", "parent": "q", "role": "assistant", "content": "So", "note": "interrupted"}
    partial, same = page.evaluate(settle, [asked, {"conversation": "1", "turn": answer}])
    assert not same
    assert (partial["system"], partial["head"], list(partial["turns"])) == ("Brief.", "a", ["q", "a"])
    assert page.evaluate(settle, [partial, {"conversation": "1", "turn": answer}])[1]
    partial["turns"]["a"]["vote"] = "up"
    whole = {
        "conversation": "1",
        "turn": {**answer, "content": "So it is.", "made": {"finish_reason": "stop", "token_ids": [1, 2]}},
    }
    done, same = page.evaluate(settle, [partial, whole])
    assert not same
    turn, mark = done["turns"]["a"], {"kept": True, "finish_reason": "stop", "tokens": 2}
    assert (turn["content"], turn["vote"], turn["made"]) == ("So it is.", "up", mark)
    assert page.evaluate(settle, [done, whole])[1]
    for elsewhere in ({"conversation": "2", "turn": answer}, {"conversation": "1", "turn": {**answer, "parent": "x"}}):
        assert page.evaluate(settle, [asked, elsewhere])[1]
