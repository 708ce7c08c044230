"""What is kept of each open page."""

from typing import Any

from fastapi.testclient import TestClient

from granite_demo.server import sessions
from granite_demo.server.app import create_app
from granite_demo.server.sessions import Session
from tests.fakes import FakeBackend


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
    assert not any(look for kept in holder.session_data.values() for look in kept.config_values.values())
    page = app.state.page.get_blocks()
    state = next(key for key, block in page.blocks.items() if block.stateful)
    holder["ann"][state] = "hers"
    assert holder["ann"][state] == "hers"
    assert holder["bob"][state] != "hers"


def test_the_pages_used_last_are_kept(backend: FakeBackend) -> None:
    holder: Any = create_app(backend).state.page.state_holder
    assert holder.capacity == sessions.CAPACITY
    holder.capacity = 2
    for name in ("one", "two", "one", "three"):
        holder[name]
    assert list(holder.session_data) == ["one", "three"]
