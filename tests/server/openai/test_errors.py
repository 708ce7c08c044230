"""What is refused: by which status, whose fault, in whose words."""

import json
from typing import Any

import httpx
import pytest

from granite_demo.errors import ContextOverflowError, EngineBusyError, EngineError, InvalidRequestError
from granite_demo.server.app import create_app
from granite_demo.server.policy import Policy
from granite_demo.server.run import running
from granite_demo.types.constraints import Constraint
from granite_demo.types.sampling_params import SamplingParams
from tests.bad_requests import BAD_REQUESTS, CHAT, PLAIN, SAMPLED, Bad
from tests.fakes import FakeBackend

JSON = {"content-type": "application/json"}


def post(http: httpx.Client, body: Any, route: str = CHAT) -> httpx.Response:
    return http.post(route, content=json.dumps(body), headers=JSON)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_is_refused(http: httpx.Client, fake: FakeBackend, bad: Bad, stream: bool) -> None:
    body = {"stream": True, **bad.body} if stream and "stream_options" not in bad.fields else bad.body
    response = post(http, body, bad.route)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (bad.status, bad.param), error
    assert bad.words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert len(response.text) < 1500
    assert not fake.requests


@pytest.mark.parametrize("bad", SAMPLED, ids=lambda bad: bad.name)
def test_the_words_are_those_of_the_page(http: httpx.Client, bad: Bad) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        SamplingParams(**bad.sampling)
    message = post(http, bad.body, bad.route).json()["error"]["message"]
    if bad.fields != {"max_tokens": 0}:
        assert message == refused.value.user_text or (len(refused.value.user_text) > 600 and message.endswith("…"))


def test_there_are_enough_of_them() -> None:
    assert len({bad.name for bad in BAD_REQUESTS}) == len(BAD_REQUESTS) >= 60


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"n": ' + b"9" * 10_000 + b"}", b'"\\ud800"'],
    ids=["nothing", "half", "list", "number", "no UTF-8", "brackets", "digits", "text"],
)
def test_a_body_that_is_no_object_is_refused(http: httpx.Client, content: bytes) -> None:
    response = http.post(CHAT, content=content, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_only_json_is_taken(http: httpx.Client) -> None:
    response = http.post(CHAT, content=json.dumps(PLAIN[CHAT]), headers={"content-type": "text/plain"})
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]


def test_lone_surrogates_are_replaced_as_on_the_page(http: httpx.Client, fake: FakeBackend) -> None:
    body = (
        b'{"messages": [{"role": "user", "content": "a\\ud800b \\ud83d\\ude00"}], '
        b'"user": "\\udfff", "stop": "\\uDC00", "guided_choice": ["\\ud800"]}'
    )
    assert http.post(CHAT, content=body, headers=JSON).status_code == 200
    assert fake.requests[0].messages[0].content == "a\ufffdb \N{GRINNING FACE}"
    assert fake.requests[0].sampling.stop == ("\ufffd",)
    assert fake.requests[0].sampling.constraint == Constraint("choice", choices=("\ufffd",))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(http: httpx.Client, chunked: bool) -> None:
    piece = b" " * 2**20
    response = http.post(CHAT, content=iter([piece] * 9) if chunked else piece * 9, headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_other_routes_and_methods_are_refused(http: httpx.Client) -> None:
    missing = http.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert http.get("/v1/models/a%0Ab").json()["error"]["code"] == "not_found"
    wrong = http.get(CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["code"] == "method_not_allowed"
    assert http.get("/v1/models/gpt-4").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextOverflowError(2000, 1000), 400, "context_length_exceeded"),
        (EngineBusyError(64), 503, "server_busy"),
        (EngineError("The model failed."), 500, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_token_has_its_status(
    http: httpx.Client, fake: FakeBackend, error: Exception, status: int, code: str | None, stream: bool
) -> None:
    fake.words, fake.error = [], error
    response = post(http, {**PLAIN[CHAT], "stream": stream})
    assert response.status_code == status
    assert (response.json()["error"]["message"], response.json()["error"]["code"]) == (str(error), code)
    assert ("retry-after" in response.headers) == (status == 503)


def test_an_unexpected_error_has_no_secret(http: httpx.Client, fake: FakeBackend) -> None:
    fake.error = RuntimeError("hf_SECRETTOKEN")
    whole = post(http, PLAIN[CHAT])
    streamed = post(http, {**PLAIN[CHAT], "stream": True})
    assert whole.status_code == 500
    assert "Error ID: " in whole.json()["error"]["message"]
    assert "Error ID: " in streamed.text
    assert "SECRET" not in whole.text + streamed.text


def test_what_a_model_cannot_do_is_refused_by_its_name(http: httpx.Client, fake: FakeBackend) -> None:
    from dataclasses import replace

    from granite_demo.types.messages import Switches

    why = "Not with this engine."
    features = ("logit bias", "log probabilities", "constraints")
    fake.state = replace(fake.state, unable=tuple((name, why) for name in features), switches=Switches())  # type: ignore[misc]
    tool = {"name": "a", "parameters": {"type": "object"}}
    for fields, param in (
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [tool]}, "tools"),
        ({"documents": [{"text": "a"}]}, "documents"),
        ({"chat_template_kwargs": {"controls": {"length": "short"}}}, "chat_template_kwargs.controls.length"),
    ):
        response = post(http, {**PLAIN[CHAT], **fields})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not fake.requests


def test_the_key_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granite_demo.access.MAX_FAILURES", 100)
    backend = FakeBackend()
    with (
        running(create_app(backend, policy=Policy(api_key="s3cret")), backend) as url,
        httpx.Client(base_url=url) as http,
    ):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}, {"x-api-key": "s3cret"}):
            for path in ("/v1/models", "/v1/nothing", "/metrics"):
                response = http.get(path, headers=headers)
                assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
            assert http.post(CHAT, json=PLAIN[CHAT], headers=headers).status_code == 401
        good = {"authorization": "Bearer s3cret"}
        assert http.get("/v1/models", headers=good).status_code == 200
        assert http.get("/metrics", headers=good).status_code == 200
        assert http.post(CHAT, json=PLAIN[CHAT], headers=good).status_code == 200
        assert [http.get(path).status_code for path in ("/health", "/ready", "/")] == [200, 200, 200]
        # The counter's series do not grow with what strangers ask for.
        assert 'route="other"' in http.get("/metrics", headers=good).text
        assert "nothing" not in http.get("/metrics", headers=good).text


def test_other_origins_get_nothing(http: httpx.Client) -> None:
    for origin in ("https://evil.example", "null"):
        response = http.options(CHAT, headers={"origin": origin, "access-control-request-method": "POST"})
        assert "access-control-allow-origin" not in response.headers
        response = http.post(CHAT, json=PLAIN[CHAT], headers={"origin": origin})
        assert "access-control-allow-origin" not in response.headers
