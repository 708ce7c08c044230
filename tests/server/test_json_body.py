"""The JSON that a stranger sends."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from granite_demo.server import json_body
from granite_demo.server.app import create_app
from granite_demo.server.json_body import MAX_VALUES, parse_json
from tests.fakes import FakeBackend


@pytest.mark.parametrize(
    "value",
    [
        ["[{,"] * 20,
        ['"[,\\', '\\"{' * 5 * MAX_VALUES],
        ["x" * MAX_VALUES * 2],
        list(range(MAX_VALUES - 1)),
        [{"role": "user", "content": "a, b, c\n"}] * 50_000,
    ],
)
def test_a_text_of_any_length_is_one_value(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("part", ["[],", "{},", "1,", '"",', '{"a":{}},', '"\\\\",', "[[[1]]],", '"a\\\\\\"b,",'])
def test_a_body_with_more_values_than_the_limit_is_rejected(part: str) -> None:
    with pytest.raises(HTTPException, match="values") as error:
        parse_json(("[" + part * MAX_VALUES + "0]").encode())
    assert error.value.status_code == 413


@pytest.mark.parametrize(
    "body", [b'"' * 10**6, b'["' + b'\\"[' * 10**6, b'{"a":"' + b"[" * 10**6, b"\\" * 10**6 + b"," * 10**6]
)
def test_a_damaged_body_is_read_once(body: bytes) -> None:
    with pytest.raises((json.JSONDecodeError, HTTPException)):
        parse_json(body)


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict", "/v1/chat/completions"])
def test_page_and_api_reject_too_many_values(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(json_body, "MAX_VALUES", 100)
    with TestClient(create_app(backend)) as http:
        answer = http.post(path, json={"data": [[]] * 101})
        assert answer.status_code == 413, answer.text
        assert "more than 100 values" in answer.text
