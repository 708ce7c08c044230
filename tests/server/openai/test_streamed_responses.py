"""Clients that go, wait or read slowly; what runs is ended, and nobody else is held up."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from granite_demo.engine.failures import closed_error
from granite_demo.server.app import create_app
from granite_demo.server.openai.routes import create_api
from granite_demo.server.run import running
from granite_demo.types.events import Queued, StreamEvent, TextDelta
from granite_demo.types.model_status import EngineStats
from granite_demo.types.requests import GenerationRequest
from tests.fakes import FakeBackend

HI = {"messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"prompt": "Hi", "max_tokens": 100}


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.01)
    return False


def send(http: httpx.Client, path: str, body: Mapping[str, object]) -> socket.socket:
    """A request on a connection of its own, whose answer nobody reads."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    connection = socket.create_connection((http.base_url.host, http.base_url.port or 0))
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("waits", ["for the first token", "in line", "for the next token"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_who_goes_is_not_answered_any_more(
    http: httpx.Client, fake: FakeBackend, path: str, stream: bool, waits: str
) -> None:
    fake.words = ["word "] * 50
    fake.delay = 60.0
    if waits != "for the next token":
        fake.first_delay = 60.0
    if waits == "in line":
        fake.queued = [Queued(3)]
    body = HI if "chat" in path else COMPLETION
    with closing(send(http, path, {**body, "stream": stream, "n": 2})):
        assert wait_until(lambda: fake.running == 2, 5)
        time.sleep(0.1)
    assert wait_until(lambda: fake.running == 0, 1)
    fake.__init__()  # type: ignore[misc]
    assert http.post(path, json=body).status_code == 200


def test_who_goes_after_a_while_is_noticed_too(http: httpx.Client, fake: FakeBackend) -> None:
    fake.first_delay = 60.0
    with closing(send(http, "/v1/chat/completions", {**HI, "stream": True})):
        time.sleep(1.0)  # the stream has begun
        assert fake.running == 1
    assert wait_until(lambda: fake.running == 0, 1)


def test_who_does_not_read_holds_up_nobody(http: httpx.Client, fake: FakeBackend) -> None:
    fake.words = ["x" * 10_000] * 2000
    with closing(send(http, "/v1/chat/completions", {**HI, "stream": True})):
        assert wait_until(lambda: len(fake.requests) == 1, 5)
        fake.words = ["quick"]
        started = time.monotonic()
        assert http.post("/v1/chat/completions", json=HI).json()["choices"][0]["message"]["content"] == "quick"
        assert http.get("/health").status_code == 200
        assert time.monotonic() - started < 5
    assert wait_until(lambda: fake.running == 0, 5)


async def test_a_silent_stream_is_kept_open() -> None:
    backend = FakeBackend()
    backend.first_delay = 1.0
    app = FastAPI()
    app.mount("/v1", create_api(backend, ping=0.1))
    app.state.page = SimpleNamespace(stop_event=asyncio.Event())
    with running(app, backend) as url:
        text = (await asyncio.to_thread(httpx.post, f"{url}/v1/chat/completions", json={**HI, "stream": True})).text
    assert text.startswith(": ping")
    assert text.endswith("data: [DONE]\n\n")


class Closing(FakeBackend):
    """Writes until it is closed, and ends as an engine then does."""

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        count = 0
        while not self.closed.is_set():
            count += 1
            yield TextDelta("word ", count)
            await asyncio.sleep(0.02)
        raise closed_error()


def test_a_server_that_stops_sends_an_error_to_its_clients() -> None:
    backend = Closing()
    heard: list[str] = []

    def listen(url: str) -> None:
        with httpx.stream("POST", f"{url}/v1/completions", json={**COMPLETION, "stream": True}) as answer:
            heard.extend(line for line in answer.iter_lines() if line)

    with running(create_app(backend), backend) as url:
        thread = threading.Thread(target=listen, args=(url,))
        thread.start()
        assert wait_until(lambda: 'first_token_seconds_count{source="api"} 1.0' in httpx.get(f"{url}/metrics").text, 10)
    thread.join(10)
    assert "the server is stopping" in json.loads(heard[-2].removeprefix("data: "))["error"]["message"]
    assert heard[-1] == "data: [DONE]"


def test_health_readiness_and_metrics(http: httpx.Client, fake: FakeBackend) -> None:
    assert http.get("/health").json() == {"status": "ok", "model": "ready"}
    assert http.get("/ready").status_code == 200
    for stage in ("loading", "failed", "idle"):
        fake.state = replace(fake.state, stage=stage)
        assert http.get("/health").status_code == 200
        assert http.get("/ready").status_code == 503
    fake.state = replace(fake.state, stage="ready", engine=EngineStats(2, 3, 1, 0.25, "The GPU has failed."))
    dead = http.get("/health")
    assert (dead.status_code, dead.json()["cause"]) == (503, "The GPU has failed.")
    assert http.get("/ready").status_code == 503
    text = http.get("/metrics").text
    for line in (
        "granite_demo_requests_running 2.0",
        "granite_demo_requests_waiting 3.0",
        "granite_demo_engine_restarts_total 1.0",
        "granite_demo_kv_cache_used_ratio 0.25",
    ):
        assert line in text


def test_answers_are_measured() -> None:
    backend = FakeBackend()
    with running(create_app(backend), backend) as url:
        httpx.post(f"{url}/v1/chat/completions", json=HI)
        httpx.post(f"{url}/v1/chat/completions", json={**HI, "stream": True})
        httpx.post(f"{url}/v1/chat/completions", json={**HI, "temperature": 9})
        text = httpx.get(f"{url}/metrics").text
    for line in (
        'granite_demo_requests_total{code="200",route="/v1/chat/completions"} 2.0',
        'granite_demo_requests_total{code="400",route="/v1/chat/completions"} 1.0',
        'granite_demo_prompt_tokens_total{source="api"} 10.0',
        'granite_demo_completion_tokens_total{source="api"} 6.0',
        'granite_demo_time_to_first_token_seconds_count{source="api"} 2.0',
        'granite_demo_inter_token_seconds_count{source="api"} 4.0',
    ):
        assert line in text
