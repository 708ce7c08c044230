"""What visitors send does not reach the terminal by way of Gradio's errors."""

import logging

import pytest
from fastapi.testclient import TestClient

from granite_demo.server.app import create_app
from tests.fakes import FakeBackend

FORGED = "canary\n2026 all is well\x1b[2J"


def test_an_error_of_gradio_is_a_line_of_the_log_without_what_was_sent(
    backend: FakeBackend, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "granite_demo")  # another test may have set it higher
    with TestClient(create_app(backend), raise_server_exceptions=False) as client:
        config = client.get("/config").json()
        choices = {one["id"] for one in config["components"] if one["type"] in ("dropdown", "radio")}
        events = [one for one in config["dependencies"] if choices & set(one["inputs"]) and one["backend_fn"]]
        event = next(one for one in events if one["queue"] is False)
        shown = {one["id"]: one["props"].get("value") for one in config["components"]}
        data = [FORGED if each in choices else shown[each] for each in event["inputs"]]
        body = {"data": data, "fn_index": event["id"], "session_hash": "stranger"}
        assert client.post("/gradio_api/run/predict", json=body).status_code >= 400
    heard = capfd.readouterr()
    assert "Traceback" not in heard.err + caplog.text
    assert "canary" not in heard.out + heard.err + caplog.text
    assert "The page could not do what was asked: Error in" in caplog.text
