"""The application over a fake backend, without a browser."""

import re

import pytest
from fastapi.testclient import TestClient

from granite_demo.server.app import create_app
from granite_demo.server.policy import Policy
from tests.fakes import FakeBackend


@pytest.fixture
def client(backend: FakeBackend) -> TestClient:
    return TestClient(create_app(backend))


def test_the_backend_is_started_and_closed_with_the_application(client: TestClient, backend: FakeBackend) -> None:
    assert not backend.started.is_set()
    with client:
        assert backend.started.is_set()
        assert not backend.closed.is_set()
    assert backend.closed.is_set()


def test_health_has_the_stage_of_the_model(client: TestClient) -> None:
    response = client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "model": "ready"})


def test_the_page_is_at_the_root_with_our_theme_and_style(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "granite-demo" in page.text
    assert "#0f62fe" in client.get("/theme.css").text
    assert "#chatbot" in client.get("/config").json()["css"] or "#chatbot" in page.text


def test_gradio_reports_nothing_and_keeps_no_runs(client: TestClient) -> None:
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False


def test_files_of_the_machine_are_not_served(client: TestClient) -> None:
    for path in ("/etc/passwd", "app.py", "..%2f..%2fetc%2fpasswd"):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_no_event_is_in_the_public_api(client: TestClient) -> None:
    assert client.get("/gradio_api/info").json()["named_endpoints"] == {}


def test_errors_tell_no_secret(backend: FakeBackend) -> None:
    backend.error = RuntimeError("hf_SECRETTOKEN")
    with TestClient(create_app(backend)) as client:
        body = {"data": [[{"role": "bad", "content": 3}], "", 0, 1, 0, 1, 5, None, ""], "session_hash": "s"}
        respond = next(event["id"] for event in client.get("/config").json()["dependencies"] if event["queue"])
        joined = client.post("/gradio_api/queue/join", json={**body, "fn_index": respond})
        assert joined.status_code in (200, 422)
        assert not re.search("SECRET|Traceback", joined.text)


def test_only_a_post_ends_a_session(backend: FakeBackend) -> None:
    with TestClient(create_app(backend, policy=Policy(logins=(("ann", "secret"),)))) as client:
        assert client.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
        assert "<form" in client.get("/logout").text
        assert client.get("/config").status_code == 200
        client.post("/logout")
        assert client.get("/config").status_code == 401
    with TestClient(create_app(backend)) as client:
        assert client.get("/logout").status_code == 405
