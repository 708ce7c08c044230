"""Tests for texts that are too long, empty, very large, or contain unusual characters."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.faults.site import CHAT, GREEDY, Site, checkpoint, loader_of, serving, unharmed

HELLO = {"messages": [{"role": "user", "content": "w1"}], "max_tokens": 4}


def refused(site: Site, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """Return the status and the message of an error."""
    reply = site.http.post(path, json=body)
    return reply.status_code, reply.json()["error"]["message"]


def test_f11_without_a_chat_template_completion_works_and_chat_is_an_error(tmp_path: Path) -> None:
    with serving(loader_of(checkpoint(tmp_path / "tiny", template=None))) as site, unharmed(site):
        status, message = refused(site, "/v1/chat/completions", HELLO)
        assert (status, "has no chat template" in message) == (400, True)
        site.join("chat")
        messages = str(list(site.messages_to("chat")))
        assert "has no chat template" in messages
        assert "w1 w2 w3" in messages


def test_f11_the_error_text_of_a_template_is_shown(tmp_path: Path) -> None:
    template = "{{ raise_exception('Only one system message, please.') }}"
    with serving(loader_of(checkpoint(tmp_path / "tiny", template))) as site, unharmed(site):
        status, message = refused(site, "/v1/chat/completions", HELLO)
        assert status == 400
        assert "Only one system message" in message


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_f12_a_prompt_that_does_not_fit_is_an_error_with_both_numbers(site: Site, path: str) -> None:
    context = site.backend.status().context_length
    assert context
    text = "w1 " * (context + 5)
    with unharmed(site):
        body = {**GREEDY, "prompt": text} if "chat" not in path else {"messages": [{"role": "user", "content": text}]}
        status, message = refused(site, path, body)
        assert status == 400
        assert f"holds {context:,}" in message
        assert "The prompt has" in message


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_f12_more_new_tokens_than_fit_end_where_the_context_does(site: Site, path: str) -> None:
    context = site.backend.status().context_length or 0
    text = "w1 " * (context - 10)
    with unharmed(site):
        body = {**GREEDY, "prompt": text} if "chat" not in path else {"messages": [{"role": "user", "content": text}]}
        reply = site.http.post(path, json={**body, "temperature": 0, "max_tokens": 100}).json()
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["total_tokens"] == context
        assert 0 < reply["usage"]["completion_tokens"] <= 10


def test_f12_the_page_keeps_the_question(site: Site) -> None:
    context = site.backend.status().context_length or 0
    with unharmed(site):
        site.join("long", "w1 " * (context + 5))
        messages = str(list(site.messages_to("long")))
        assert f"holds {context:,}" in messages
        assert "w1 w1 w1" in messages


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_f13_an_empty_message_is_answered(site: Site, text: str) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": text}], "max_tokens": 5}
    with unharmed(site), closing(site.send("/v1/chat/completions", body)) as connection:
        connection.settimeout(10)
        assert b" 200 " in connection.recv(64)


def test_f13_an_empty_prompt_is_an_error(site: Site) -> None:
    with unharmed(site):
        status, message = refused(site, "/v1/completions", {**GREEDY, "prompt": ""})
        assert (status, "is empty" in message) == (400, True)


def test_f14_ten_megabytes_are_rejected_immediately(site: Site) -> None:
    started = time.monotonic()
    with unharmed(site), closing(site.send("/v1/completions", {**GREEDY, "prompt": "w1 " * 3_500_000})) as connection:
        connection.settimeout(5)
        assert b" 413 " in connection.recv(64)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "text", ["\ud800 alone", "a\0b", "\u202eright to left", "\U0001f468\u200d\U0001f469\u200d\U0001f467"]
)
def test_f15_no_text_breaks_an_answer(site: Site, text: str) -> None:
    with unharmed(site):
        body = {**CHAT, "messages": [{"role": "user", "content": text}], "max_tokens": 5}
        for stream in (False, True):
            content = json.dumps({**body, "stream": stream})  # can contain lone surrogates as escape sequences
            headers = {"content-type": "application/json"}
            reply = site.http.post("/v1/chat/completions", content=content, headers=headers)
            assert reply.status_code == 200, reply.text
            assert "error" not in reply.text
        site.join("odd", text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), 5)
        messages = str(list(site.messages_to("odd")))
        assert "process_completed" in messages
        assert "went wrong" not in messages
