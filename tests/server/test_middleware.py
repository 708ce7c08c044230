"""What a stranger may not send to the page, tried as a stranger would: without the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from granite_demo.chat import conversation as conversations
from granite_demo.server.app import create_app
from granite_demo.server.policy import MAX_BODY
from tests.fakes import FakeBackend

EMPTY = conversations.dump(conversations.start())


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(FakeBackend()), raise_server_exceptions=False) as client:
        yield client


def call(client: TestClient, name: str, data: list[Any]) -> Any:
    """Call one of the page's handlers."""
    events = client.get("/config").json()["dependencies"]
    number = next(event["id"] for event in events if event["api_name"] == name)
    body = {"data": data, "fn_index": number, "session_hash": "stranger"}
    return client.post("/gradio_api/run/predict", json=body)


def file(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def carrying(path: str) -> dict[str, Any]:
    """A conversation with a file hidden in it."""
    conversation = conversations.add(conversations.start(), "user", content="Hi")
    conversation = conversations.add(conversation, "assistant", content="Ho", made={"file": file(path)})
    return conversations.dump(conversation)


def test_a_file_that_was_uploaded_becomes_a_document(client: TestClient) -> None:
    [path] = client.post("/gradio_api/upload", files={"files": ("mine.txt", b"my own words")}).json()
    response = call(client, "add_files", [EMPTY, [file(path)]])
    assert response.status_code == 200
    assert "my own words" in response.text


def test_no_other_file_of_the_machine_is_read(client: TestClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("canary-of-the-server")
    answers = [
        call(client, "add_files", [EMPTY, [file(str(secret))]]),
        call(client, "act", [carrying(str(secret)), "", ""]),
        call(client, "act", [carrying("/proc/self/environ"), "", ""]),
    ]
    for response in answers:
        assert response.status_code == 500
        assert "canary" not in response.text


def test_tools_that_cannot_be_read_stop_the_question_and_change_nothing(client: TestClient) -> None:
    response = call(client, "send", [EMPTY, "", "[{]", "Hello"])
    assert response.status_code == 200
    assert "line 1, column 3" in response.text
    assert "Hello" not in response.text
    assert "Hello" in call(client, "send", [EMPTY, "", "", "Hello"]).text


@pytest.mark.parametrize("address", ["http://192.0.2.1/x.txt", "https://example.org/x.txt", "ftp://192.0.2.1/x"])
def test_nothing_is_fetched_from_elsewhere(client: TestClient, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    async def fetch(url: str, cache_dir: str) -> str:
        fetched.append(url)
        raise OSError

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    assert call(client, "add_files", [EMPTY, [file(address)]]).status_code == 500
    assert call(client, "act", [carrying(address), "", ""]).status_code == 500
    assert fetched == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_an_end_is_refused(client: TestClient, chunked: bool) -> None:
    piece = b" " * 2**20
    content = iter([piece] * (MAX_BODY // 2**20 + 1)) if chunked else piece * (MAX_BODY // 2**20 + 1)
    response = client.post("/gradio_api/run/predict", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("way", ["queue/join", "run/predict"])
@pytest.mark.parametrize("named", [{"fn_index": 9999}, {"fn_index": -1}])
def test_an_event_that_the_page_does_not_have_is_not_found(client: TestClient, way: str, named: dict[str, int]) -> None:
    answer = client.post(f"/gradio_api/{way}", json={"data": [], "session_hash": "stranger", **named})
    assert (answer.status_code, answer.json()["detail"]) == (404, "The page has no such event. Reload it.")


def test_a_direct_call_of_no_event_is_not_found(client: TestClient) -> None:
    assert client.post("/gradio_api/run/nothing", json={"data": []}).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit/"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/gradio_api/dev/reload"),
        ("POST", "/gradio_api/stream/x"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/token"),
        ("POST", "/gradio_api/call/answer"),
        ("GET", "/gradio_api/proxy=https://example.org"),
        ("GET", "/monitoring/summary"),
    ],
)
def test_t12_what_the_page_does_not_use_is_not_there(client: TestClient, method: str, path: str) -> None:
    assert client.request(method, path).status_code == 404
    assert client.request(method, path).json() == {"error": "Not found."}
