"""What is kept of each open page."""

from typing import Any

import gradio as gr
from fastapi.testclient import TestClient

from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.ui.gradio_patches import sessions
from granite_demo.ui.gradio_patches.sessions import Session
from tests.fakes import FakeBackend
from tests.threats.stranger import Stranger


def test_the_values_of_a_page_are_kept_and_the_looks_of_its_components_are_not(backend: FakeBackend) -> None:
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


def test_of_what_an_event_has_changed_only_what_checks_values_is_kept(backend: FakeBackend) -> None:
    app = create_app(backend)
    page = app.state.page.get_blocks()
    session = Session(page)
    looks = [block for block in page.blocks.values() if isinstance(block, gr.Button | gr.Column)]
    for block in looks:
        changed = type(block)(render=False)
        session[block._id] = changed
        assert session[block._id] is changed
    kept: Any = session.blocks_config.blocks
    assert len(kept.maps[0]) == 1
    choice = next(block for block in page.blocks.values() if isinstance(block, gr.Dropdown))
    session[choice._id] = gr.Dropdown(["new"], render=False)
    session[looks[0]._id] = gr.Button(render=False)
    assert session[choice._id].choices == [("new", "new")]
    assert session[looks[-1]._id] is looks[-1]


def test_nothing_is_kept_of_events_that_are_over(backend: FakeBackend) -> None:
    app = create_app(backend)
    queue = app.state.page.get_blocks()._queue
    with running(app, backend) as url, Stranger(base_url=url) as http:
        http.config = http.get("/config").json()
        for number in range(3):
            assert "Hello" in http.ask("Hello", session=f"visitor{number}")
    assert queue.event_analytics == {}
    assert len(queue.pending_event_ids_session) == 1
    assert queue.pending_event_ids_session["a page that has gone"] == set()


def test_the_pages_used_last_are_kept(backend: FakeBackend) -> None:
    holder: Any = create_app(backend).state.page.state_holder
    assert holder.capacity == sessions.CAPACITY
    holder.capacity = 2
    for name in ("one", "two", "one", "three"):
        holder[name]
    assert list(holder.session_data) == ["one", "three"]
