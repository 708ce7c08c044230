"""What a stranger may not send to the page, tried as a stranger would: without the page."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from granite_demo.server.app import create_app
from granite_demo.server.policy import MAX_BODY
from tests.fakes import FakeBackend


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(FakeBackend()), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_an_end_is_refused(client: TestClient, chunked: bool) -> None:
    piece = b" " * 2**20
    content = iter([piece] * (MAX_BODY // 2**20 + 1)) if chunked else piece * (MAX_BODY // 2**20 + 1)
    response = client.post("/gradio_api/run/predict", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert client.get("/health").status_code == 200


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
