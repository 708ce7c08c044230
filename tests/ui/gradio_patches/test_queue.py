"""Limits of Gradio's queue."""

import asyncio
import time
from typing import Any

import gradio as gr
import pytest

from granite_demo.access import Limits
from granite_demo.ui.gradio_patches import queue as queues
from granite_demo.ui.gradio_patches.queue import Mailbox, Mailboxes
from tests.fakes import FakeBackend
from tests.threats.stranger import public
from tests.ui.gradio_patches.contract import differs


def eventually(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_visitor_has_a_number_of_events_in_the_queue(backend: FakeBackend) -> None:
    backend.first_delay = 30
    with public(backend, Limits(), queued=2) as http:
        send = http.event("send")["id"]
        joined = [http.join(send, http.question("Hi"), f"page{number}") for number in range(4)]
        assert [answer.status_code for answer in joined] == [200, 200, 429, 429]
        assert "2 requests" in joined[-1].json()["detail"]


def test_an_answer_that_no_page_reads_ends(backend: FakeBackend) -> None:
    backend.first_delay = 30
    with public(backend, unread=0.1) as http:
        assert http.join(http.event("send")["id"], http.question("Hi")).status_code == 200
        eventually(lambda: backend.running)
        eventually(lambda: not backend.running)


def test_an_answer_that_is_read_is_whole(backend: FakeBackend) -> None:
    backend.delay = 0.5
    with public(backend, unread=0.1) as http:
        assert "finished (stop)" in http.ask("Hi")


async def test_a_reader_who_waits_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "SENDING_SECONDS", 0.05)
    gone: list[int] = []
    mailbox = Mailbox(0.05, lambda: gone.append(1))
    reader = asyncio.create_task(mailbox.get())
    await asyncio.sleep(1.2)
    assert not gone
    mailbox.put_nowait("message")
    assert await reader == "message"
    await asyncio.sleep(1.2)
    assert gone


async def test_too_many_messages_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def end(session: str) -> None:
        ended.append(session)

    monkeypatch.setattr(queues, "MAX_UNREAD", 3)
    boxes = Mailboxes(60, end)
    boxes["page"] = asyncio.Queue()
    for number in range(4):
        boxes["page"].put_nowait(number)
    await asyncio.sleep(0)
    assert (ended, dict(boxes)) == (["page"], {})


def test_contract_the_queue_keeps_messages_that_nobody_reads() -> None:
    queue: Any = gr.Blocks(analytics_enabled=False).queue()._queue
    what = "Queue keeps an asyncio.Queue for each of 2,000 pages in pending_messages_per_session"
    assert queue.pending_messages_per_session.max_size == 2000, differs(what, "queueing.py", "queue.py")
    names = queue.push.__func__.__code__.co_names
    what = "Queue.push makes a page's queue of messages, and has no limit for a visitor"
    assert {"AsyncQueue", "max_size"} <= set(names), differs(what, "queueing.py", "queue.py")
    assert "client" not in names, differs(what, "queueing.py", "queue.py")
