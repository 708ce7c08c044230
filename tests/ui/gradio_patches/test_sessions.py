"""What is kept of each open page."""

import asyncio
import sys
from contextlib import ExitStack
from sys import getsizeof
from typing import Any

import gradio as gr
import httpx
import pytest
from fastapi.testclient import TestClient
from gradio.queueing import Queue
from gradio.routes import App
from gradio.state_holder import SessionState, StateHolder

from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.ui.completion.edit_history import History
from granite_demo.ui.completion.token_tree import Run, Tree
from granite_demo.ui.executor import visitor
from granite_demo.ui.gradio_patches import sessions
from granite_demo.ui.gradio_patches.sessions import Session
from tests.fakes import FakeBackend
from tests.threats.stranger import Stranger
from tests.ui.gradio_patches.contract import differs


def test_the_values_of_a_page_are_kept_but_no_configuration_of_a_component(backend: FakeBackend) -> None:
    app = create_app(backend)
    holder: Any = app.state.page.state_holder
    with TestClient(app) as client:
        events = client.get("/config").json()["dependencies"]
        event = next(one for one in events if one["api_name"] == "unload")
        body = {"data": [None], "fn_index": event["id"]}
        for visitor in ("ann", "bob"):
            answer = client.post("/gradio_api/run/predict", json={**body, "session_hash": visitor})
            assert answer.status_code == 200, answer.text
    assert set(holder.session_data) == {"ann", "bob"}
    assert all(isinstance(kept, Session) for kept in holder.session_data.values())
    assert not any(kept.config_values for kept in holder.session_data.values())
    page = app.state.page.get_blocks()
    state = next(key for key, block in page.blocks.items() if block.stateful)
    holder["ann"][state] = "hers"
    assert holder["ann"][state] == "hers"
    assert holder["bob"][state] != "hers"


def test_an_update_is_kept_only_if_its_component_checks_values(backend: FakeBackend) -> None:
    app = create_app(backend)
    page = app.state.page.get_blocks()
    session = Session(page)
    unchecked = [block for block in page.blocks.values() if isinstance(block, gr.Button | gr.Column)]
    for block in unchecked:
        changed = type(block)(render=False)
        session[block._id] = changed
        assert session[block._id] is changed
    kept: Any = session.blocks_config.blocks
    assert len(kept.maps[0]) == 1
    choice = next(block for block in page.blocks.values() if isinstance(block, gr.Dropdown))
    session[choice._id] = gr.Dropdown(["new"], render=False)
    session[unchecked[0]._id] = gr.Button(render=False)
    assert session[choice._id].choices == [("new", "new")]
    assert session[unchecked[-1]._id] is unchecked[-1]


def test_nothing_is_kept_of_events_that_have_ended(backend: FakeBackend) -> None:
    app = create_app(backend)
    queue = app.state.page.get_blocks()._queue
    with running(app, backend) as url, Stranger(base_url=url) as http:
        http.config = http.get("/config").json()
        for number in range(3):
            assert "Hello" in http.ask("Hello", session=f"visitor{number}")
    assert queue.event_analytics == {}
    assert len(queue.pending_event_ids_session) == 1
    assert queue.pending_event_ids_session["a page that has gone"] == set()


def test_the_server_does_not_wait_for_open_pages(backend: FakeBackend, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as page:
        with running(create_app(backend), backend) as url:
            stream = page.enter_context(httpx.stream("GET", f"{url}/gradio_api/heartbeat/visitor", timeout=30))
            heartbeats = stream.iter_text()  # without a reference to it, the connection closes
            assert "ALIVE" in next(heartbeats)
        assert "timeout graceful shutdown exceeded" not in caplog.text


@pytest.fixture
def holder(backend: FakeBackend) -> Any:
    return create_app(backend).state.page.state_holder


def put(holder: Any, name: str, owner: str, size: int = 0) -> None:
    """A page of ``owner`` with a value of ``size`` bytes."""
    token = visitor.set(owner)
    state = next(key for key, block in holder.blocks.blocks.items() if block.stateful)
    holder[name][state] = "x" * size
    visitor.reset(token)


def test_the_values_of_one_page_have_a_limit(holder: Any) -> None:
    put(holder, "large", "ann", sessions.MAX_SESSION_BYTES)
    put(holder, "small", "ann", 1000)
    assert list(holder.session_data) == ["small"]


def test_the_time_to_measure_values_does_not_grow_with_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []

    def measured(value: Any) -> int:
        looks.append(value)
        return getsizeof(value)

    monkeypatch.setattr(sys, "getsizeof", measured)

    def tree(runs: int, length: int) -> Tree:
        alternatives = range(20)
        tokens = [
            [
                ScoredToken(
                    n,
                    f"{run} {n}",
                    -n,
                    None,
                    None,
                    tuple(TokenAlternative(a, f"{run} {n} {a}", -a) for a in alternatives),
                )
                for n in range(length)
            ]
            for run in range(runs)
        ]
        return Tree("prompt", runs=tuple(Run(tokens=tuple(row), text="x" * length) for row in tokens))

    small, large = tree(8, 50), tree(32, 200)
    sizes = {}
    for value in (small, large):
        looks.clear()
        sizes[id(value)] = sessions._size(value)
        assert len(looks) < 10_000
    assert 10 < sizes[id(large)] / sizes[id(small)] < 25  # 16 times the tokens
    text = "x" * 1_000_000
    assert 1_900_000 < sessions._size(History(text, ("y" * 100, "z" * 900_000))) < 2_000_000
    assert sessions._size((small.prompt, text, text)) < 1_100_000  # one text, twice


def test_a_visitor_with_too_much_loses_the_oldest_of_their_own(holder: Any) -> None:
    put(holder, "bob", "bob", 1000)
    for number in range(100):
        put(holder, f"ann{number}", "ann", 1_000_000)
    kept = list(holder.session_data)
    assert kept[0] == "bob"
    assert kept[-1] == "ann99"
    assert sum(one.bytes for one in holder.session_data.values()) < sessions.MAX_VISITOR_BYTES + 100_000
    for number in range(2000):
        put(holder, f"cid{number}", "cid")
    assert {"bob", "ann99"} <= set(holder.session_data)
    assert len(holder.session_data) <= len(kept) + sessions.MAX_VISITOR_BYTES / sessions.BASE_BYTES


def test_all_visitors_together_have_a_limit_and_the_largest_pays(holder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_ALL_BYTES", 20_000_000)
    put(holder, "bob", "bob", 1000)
    for number in range(10):
        put(holder, f"ann{number}", "ann", 1_500_000)
    for number in range(10):
        put(holder, f"cid{number}", f"cid{number}", 1_500_000)
    assert holder._bytes.total() == sum(one.bytes for one in holder.session_data.values()) <= 20_000_000
    assert "bob" in holder.session_data
    assert {f"cid{number}" for number in range(10)} <= set(holder.session_data)


async def test_what_nobody_uses_is_deleted_in_time(holder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(sessions, "SESSION_SECONDS", 0.02)
    put(holder, "gone", "ann", 1000)
    await asyncio.sleep(0.2)
    assert not holder.session_data
    assert not holder._bytes


def test_contract_a_session_copies_the_configuration_of_each_component() -> None:
    with gr.Blocks(analytics_enabled=False) as page:
        box = gr.Textbox()
    session = SessionState(page)
    what = "SessionState.config_values has a copy of each component's configuration"
    assert session.config_values[box._id]["type"] == "textbox", differs(what, "state_holder.py", "sessions.py")
    what = "SessionState.blocks_config has blocks, fns and config_for_block"
    assert {"blocks", "fns"} <= vars(session.blocks_config).keys(), differs(what, "state_holder.py", "sessions.py")
    assert callable(session.blocks_config.config_for_block), differs(what, "blocks.py (BlocksConfig)", "sessions.py")
    what = "SessionState reads only default_config and blocks of the page"
    names = SessionState.__init__.__code__.co_names
    assert {"default_config", "blocks"} <= set(names), differs(what, "state_holder.py", "sessions.py")


def test_contract_the_sessions_of_10000_pages_are_kept() -> None:
    page = gr.Blocks(analytics_enabled=False)
    holder: Any = StateHolder()  # type: ignore[no-untyped-call]
    holder.set_blocks(page)
    what = "StateHolder keeps Blocks.state_session_capacity sessions (10,000) in session_data, an OrderedDict"
    assert holder.capacity == page.state_session_capacity == 10_000, differs(what, "state_holder.py", "sessions.py")
    assert page.state_holder is holder, differs(what, "state_holder.py", "sessions.py")
    holder["one"]
    assert type(holder.session_data["one"]) is SessionState, differs(what, "state_holder.py", "sessions.py")


def test_contract_the_queue_records_events_and_never_forgets_a_page() -> None:
    queue: Any = gr.Blocks(analytics_enabled=False).queue()._queue
    what = "Queue keeps ANALYTICS_MAX_EVENTS (10,000) records in event_analytics"
    assert queue.ANALYTICS_MAX_EVENTS == 10_000, differs(what, "queueing.py", "sessions.py (keep_values_only)")
    assert queue.event_analytics == {}, differs(what, "queueing.py", "sessions.py (keep_values_only)")
    what = "Queue.pending_event_ids_session is a dict of sets, filled by push()"
    assert queue.pending_event_ids_session == {}, differs(what, "queueing.py", "sessions.py (PendingEvents)")
    assert "pending_event_ids_session" in Queue.push.__code__.co_names, differs(what, "queueing.py", "sessions.py")


def test_contract_heartbeats_wait_for_the_stop_event() -> None:
    page: Any = App.create_app(gr.Blocks(analytics_enabled=False).queue())
    what = "App.stop_event, an asyncio.Event, ends the heartbeats"
    assert isinstance(page.stop_event, asyncio.Event), differs(what, "routes.py", "sessions.py (end_heartbeats)")
    assert not page.stop_event.is_set(), differs(what, "routes.py", "sessions.py (end_heartbeats)")
