"""Tests for visitors that disconnect, reload, press Stop, read slowly or do not read."""

import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from granite_demo.access import Limits
from tests.faults.site import CHAT, LONG, UNREAD, Faults, Site, loader_of, serving, unharmed, wait_until

AT_ONCE = 1.5
"""Seconds until the engine is idle: one, with a margin for a busy machine."""


def text_of(message: dict[str, Any]) -> str:
    return str(message["output"].get("data"))


@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize(("path", "body"), [("/v1/completions", LONG), ("/v1/chat/completions", CHAT)])
def test_f01_a_disconnect_ends_the_answer(
    site: Site, faults: Faults, path: str, body: dict[str, Any], tokens: int
) -> None:
    with unharmed(site):
        faults.slow(0.3 if not tokens else 0.02)
        with closing(site.send(path, body)):
            wait_until(lambda: faults.passes > tokens, 10)
            assert site.busy()
        wait_until(lambda: not site.busy(), AT_ONCE)
        assert faults.passes < 200
        faults.clear()


def test_f01_a_closed_tab_ends_its_answer(site: Site, faults: Faults) -> None:
    with unharmed(site):
        faults.slow()
        site.join("closed")
        messages = site.messages_to("closed")
        next(message for message in messages if "w63" in str(message))
        messages.close()
        time.sleep(UNREAD / 2)
        assert site.busy()  # the page can come back
        wait_until(lambda: not site.busy(), UNREAD + 2 * AT_ONCE)
        assert faults.passes < 390
        faults.clear()


def test_f02_a_reloaded_page_is_usable_and_the_old_answer_ends(site: Site, faults: Faults) -> None:
    with unharmed(site):
        faults.slow()
        site.join("old")
        with closing(site.messages_to("old")) as messages:
            next(message for message in messages if "w63" in str(message))
            site.press("old", "leave")
        wait_until(lambda: not site.busy(), UNREAD + 2 * AT_ONCE)
        faults.clear()
        assert site.http.get("/").status_code == 200
        assert site.http.get("/health").json()["model"] == "ready"
        site.join("new", tokens=5)
        assert "5 tokens" in text_of(list(site.messages_to("new"))[-2])


def test_f03_stop_keeps_the_text(site: Site, faults: Faults) -> None:
    with unharmed(site):
        faults.slow()
        site.join("stopper")
        messages_to = []
        for message in site.messages_to("stopper"):
            messages_to.append(message)
            if "w63" in str(message) and len(messages_to) < 100:
                for _ in range(2):  # the second time there is nothing to stop
                    site.press("stopper", "stop")
                messages_to += [{}] * 100
        wait_until(lambda: not site.busy(), AT_ONCE)
        last = next(message for message in reversed(messages_to) if "stopped" in str(message))
        assert "w63" in str(messages_to)
        assert faults.passes < 350, last
        faults.clear()
        site.press("stopper", "stop")  # after the end
        assert list(site.messages_to("stopper"))[-1]["msg"] == "close_stream"


def test_f03_stop_before_the_first_token(site: Site, faults: Faults) -> None:
    with unharmed(site):
        faults.slow(0.5)
        site.join("early")
        wait_until(lambda: faults.passes == 1, 10)
        site.press("early", "stop")
        messages_to = list(site.messages_to("early"))
        assert faults.passes <= 3
        assert "stopped" in str(messages_to)
        faults.clear()


def test_f17_a_slow_reader_does_not_delay_others(site: Site, faults: Faults) -> None:
    body = {**LONG, "logprobs": 5, "max_tokens": 500}
    with unharmed(site), closing(site.send("/v1/completions", body)) as connection:
        connection.settimeout(5)
        assert connection.recv(16)  # the rest is not read
        started = time.monotonic()
        assert site.answer() == site.greedy
        assert time.monotonic() - started < 5
        # The model also does not wait for the reader.
        wait_until(lambda: not site.busy(), 60)


def test_f17_updates_of_the_page_are_few(site: Site, faults: Faults) -> None:
    with unharmed(site):
        faults.slow(0.004)
        started = time.monotonic()
        site.join("watcher")
        updates = sum(message["msg"] == "process_generating" for message in site.messages_to("watcher"))
        assert updates < 20 * (time.monotonic() - started) + 5
        assert faults.passes >= 400


def test_f18_an_answer_without_a_reader_ends_at_the_limit(tiny_folder: Path) -> None:
    kept: list[Faults] = []
    loader = loader_of(tiny_folder, lambda loaded: kept.append(Faults(loaded)))
    with serving(loader, limits=Limits(seconds=1)) as site, unharmed(site):
        kept[0].slow(0.05)
        site.join("nobody")
        wait_until(site.busy, 5)
        wait_until(lambda: not site.busy(), 4)
        assert 5 < kept[0].passes < 100
        kept[0].clear()
        # A client that listens late gets the error.
        assert "stops an answer after 1 seconds" in str(list(site.messages_to("nobody")))


def test_f18_a_page_that_never_listens_does_not_block_the_next_one(site: Site, faults: Faults) -> None:
    with unharmed(site):
        faults.slow(0.005)
        site.join("deaf")
        wait_until(site.busy, 5)

        def ask() -> None:
            with suppress(httpx.HTTPError):
                assert site.answer() == site.greedy

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        wait_until(lambda: not site.busy(), 60)
