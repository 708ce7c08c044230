"""Tests for attacks on the public page. The names have the numbers of the list of threats."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from granite_demo.access import MAX_FAILURES, Limits
from granite_demo.backends.local import LocalBackend
from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.errors import EngineError
from granite_demo.outputs import structured_output
from granite_demo.server.policy import PUBLIC_MAX_BODY
from granite_demo.types.load_options import LoadOptions, Report
from tests.bad_requests import CHAT, PLAIN
from tests.fakes import FakeBackend, FakeEngine
from tests.load.server import byte_model
from tests.threats.stranger import TOKEN, Stranger, public

HUB_TOKEN = "hf_" + "c4nary" * 5

QUEUE = "/gradio_api/queue/join"


def test_t04_a_picture_from_another_server_is_rejected(backend: FakeBackend) -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}
    with public(backend) as http:
        answer = http.post(CHAT, json={"messages": [{"role": "user", "content": [picture]}]})
        assert answer.status_code == 400
        for url in ("http://127.0.0.1:1/x", "http:/127.0.0.1:1/x"):
            assert http.get(f"/gradio_api/file={url}").status_code in (403, 404)
            assert http.get(f"/gradio_api/proxy={url}").status_code in (400, 403, 404)
    assert not backend.requests


def test_t06_a_value_out_of_range_is_rejected_on_each_route(backend: FakeBackend) -> None:
    with public(backend) as http:
        assert http.post(CHAT, json={**PLAIN[CHAT], "temperature": 9}).status_code == 400
        assert http.post(CHAT, json={**PLAIN[CHAT], "n": 5}).status_code == 400
        http.ask("Hi", Temperature=9)
        http.ask("Hi", **{"Stop strings": "x" * 65})
        http.ask("Hi", Temperature=True)
    assert not backend.requests


@pytest.mark.parametrize(
    "route", ["/gradio_api/run/upload", *(pytest.param(one, marks=pytest.mark.release) for one in (QUEUE, CHAT))]
)
def test_t09_a_large_body_is_rejected_unread_on_any_route(backend: FakeBackend, route: str) -> None:
    with public(backend) as http:
        # If the client continues to send, the connection can be closed before the answer.
        try:
            answer = http.post(
                route, content=b" " * (PUBLIC_MAX_BODY + 1), headers={"content-type": "application/json"}
            )
            assert answer.status_code == 413
        except httpx.TransportError:
            pass
        assert http.get("/health").status_code == 200


def test_t09_a_long_text_is_rejected_before_it_is_read(backend: FakeBackend) -> None:
    with public(backend, Limits(characters=100)) as http:
        answer = http.post("/v1/completions", json={"prompt": "x" * 101})
        assert (answer.status_code, "the limit is 100" in answer.text) == (400, True)
        assert "the limit is 100" in http.ask("x" * 101)
    assert not backend.requests


async def test_t11_a_visitor_gets_429_above_the_limit(backend: FakeBackend) -> None:
    backend.delay = 0.3
    with public(backend, Limits(running=1, waiting=2)) as http:
        async with httpx.AsyncClient(base_url=http.base_url, timeout=20) as many:
            done = await asyncio.gather(*(many.post(CHAT, json=PLAIN[CHAT]) for _ in range(8)))
        statuses = sorted(answer.status_code for answer in done)
        assert statuses == [200] * 3 + [429] * 5
        refused = next(answer for answer in done if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) > 0
        assert http.post(CHAT, json=PLAIN[CHAT]).status_code == 200


def test_t11_the_page_shows_the_reason_and_keeps_the_text(backend: FakeBackend) -> None:
    with public(backend, Limits(tokens=1)) as http:
        assert "Hello" in http.ask("first")
        second = http.ask("my second question")
        assert "the limit is 1" in second
        assert len(backend.requests) == 1
        assert '"value":""' not in second  # the question stays in its box


def test_t13_attempts_with_the_admin_token_are_limited(backend: FakeBackend) -> None:
    with public(backend) as http:
        for _ in range(MAX_FAILURES):
            assert "not the admin token" in http.call("unload", ["wrong"]).text
        assert "Too many failed attempts" in http.call("unload", [TOKEN]).text
    assert not backend.unloaded.is_set()


def test_t13_a_page_with_a_login_shows_nothing(backend: FakeBackend) -> None:
    with public(backend, logins=(("ann", "secret"),)) as http:
        for path in (
            "/config",
            "/gradio_api/info",
            "/v1/models",
            "/metrics",
            "/gradio_api/upload_progress?upload_id=1",
        ):
            assert http.get(path).status_code == 401, path
        assert http.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0}).status_code == 401
        assert http.post(CHAT, json=PLAIN[CHAT]).status_code in (401, 429)


def test_t15_t16_no_answer_and_no_log_has_a_secret_or_a_prompt(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "granite_demo")
    backend.error = RuntimeError(f"{HUB_TOKEN} {TOKEN}")
    with public(backend) as http:
        answers = http.post(CHAT, json={"messages": [{"role": "user", "content": "canary-prompt"}]}).text + http.ask(
            "canary-prompt"
        )
        backend.error = EngineError("The model failed.")
        answers += http.post(CHAT, json=PLAIN[CHAT]).text
        answers += http.call("send", [{"canary-prompt": "\r\nFORGED"}, "", "", "canary-prompt"]).text
    assert HUB_TOKEN not in answers
    assert TOKEN not in answers
    assert "canary-prompt" not in caplog.text
    assert "FORGED" not in caplog.text


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_t17_another_page_cannot_read_an_answer(backend: FakeBackend, origin: str) -> None:
    with public(backend, hosts=("127.0.0.1",)) as http:
        for path in ("/v1/models", "/config", "/health"):
            answer = http.get(path, headers={"origin": origin})
            assert answer.headers.get("access-control-allow-origin") in (None, "")
        assert http.get("/config", headers={"host": "evil.example"}).status_code == 400
        simple = {"origin": origin, "content-type": "text/plain"}
        for path in (CHAT, "/gradio_api/queue/join"):
            assert http.post(path, content="{}", headers=simple).status_code in (400, 403, 422)


def deep(levels: int) -> dict[str, Any]:
    """Return a schema with nested schemas."""
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


@pytest.fixture(scope="module")
def open_site() -> Iterator[tuple[Stranger, FakeBackend]]:
    """Yield one page for all rejected requests."""
    backend = FakeBackend()
    with public(backend) as stranger:
        yield stranger, backend


BOMBS: dict[str, dict[str, Any]] = {
    "five stop strings": {"stop": ["a", "b", "c", "d", "e"]},
    "a long stop string": {"stop": ["x" * 65]},
    "a template": {"chat_template": "{{ cycler.__init__.__globals__ }}"},
    "a switch that tokenizes": {"chat_template_kwargs": {"tokenize": True}},
    "a repetition of repetitions": {"guided_regex": "(a{1,1000}){1,1000}"},
    "a long pattern": {"guided_regex": "a?" * 2001},
    "too many choices": {"guided_choice": [str(number) for number in range(1001)]},
    "a deep schema": schema_of(deep(220)),
    "a large schema": schema_of({"description": "x" * 70_000}),
    "a schema that fetches": schema_of({"$ref": "http://127.0.0.1:1/x"}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_t10_expensive_constraints_are_rejected(open_site: tuple[Stranger, FakeBackend], name: str) -> None:
    stranger, backend = open_site
    answer = stranger.post(CHAT, json={**PLAIN[CHAT], **BOMBS[name]})
    assert answer.status_code == 400, answer.text
    assert len(answer.json()["error"]["message"]) < 400
    assert not backend.requests


def test_t10_a_slow_compilation_is_cancelled_and_others_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, engine = byte_model(), FakeEngine([70])

    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return ReadyModel(replace(loaded, eos_ids=frozenset({3})), engine)

    monkeypatch.setattr(structured_output.compile_in_time, "__defaults__", (0.0, structured_output.NOT_BEGUN, None))
    backend = LocalBackend(ModelManager(load), LoadOptions("sample"))
    with public(backend, Limits()) as stranger:
        schema = schema_of({"type": "object", "properties": {"a": {"type": "integer"}}})
        answer = stranger.post(CHAT, json={**PLAIN[CHAT], **schema})
        assert (answer.status_code, "to prepare. Simplify it" in answer.text) == (400, True)
        assert stranger.post(CHAT, json={**PLAIN[CHAT], "max_tokens": 1}).status_code == 200
