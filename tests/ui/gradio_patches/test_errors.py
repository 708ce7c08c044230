"""What visitors send does not reach the terminal by way of Gradio's errors."""

import ast
import logging
from pathlib import Path

import gradio
import pytest
from fastapi.testclient import TestClient

from granite_demo.server.app import create_app
from granite_demo.ui.gradio_patches.errors import PRINTING
from tests.fakes import FakeBackend
from tests.ui.gradio_patches.contract import differs

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
    assert "An event of the page failed: Error in" in caplog.text


@pytest.mark.parametrize("route", ["queue/join", "run/predict", "cancel", "reset"])
def test_an_answer_does_not_repeat_values_of_the_wrong_type(backend: FakeBackend, route: str) -> None:
    with TestClient(create_app(backend)) as client:
        body = {"data": FORGED, "fn_index": FORGED, "trigger_id": FORGED}
        answer = client.post(f"/gradio_api/{route}", json={"session_hash": "a", **body, "event_id": None})
        assert answer.status_code == 422
        assert "canary" not in answer.text


def test_contract_no_other_module_of_gradio_prints_a_traceback() -> None:
    folder = Path(gradio.__file__).parent
    used: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())) if b"import traceback" in path.read_bytes() else ():
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "traceback":
                used.setdefault(path.relative_to(folder).as_posix(), set()).add(node.attr)
    used.pop("screen_recording_utils.py")  # its route is closed
    patched = {f"{module.__name__.removeprefix('gradio.')}.py" for module in PRINTING}
    assert used.keys() == patched, differs("tracebacks are printed in these modules", ", ".join(used), "errors.py")
    what = "tracebacks are printed with print_exc and format_exc"
    assert set[str]().union(*used.values()) == {"print_exc", "format_exc"}, differs(what, ", ".join(used), "errors.py")
