"""Nobody guesses a key or a password, one by one or all at once."""

import asyncio
from collections.abc import AsyncGenerator

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from granite_demo.access import MAX_FAILURES, Access
from granite_demo.errors import InvalidRequestError
from granite_demo.server.app import create_app
from granite_demo.server.brute_force import SecretsGuard
from granite_demo.server.policy import Policy
from tests.fakes import FakeBackend

RIGHT = "right"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, takes a moment, and compares."""
    body = (await receive())["body"].decode()
    await asyncio.sleep(0.001)
    wrong = 400 if scope["path"].startswith("/login") else 401
    await PlainTextResponse("", 200 if body == RIGHT else wrong)(scope, receive, send)


@pytest.fixture
async def http() -> AsyncGenerator[httpx.AsyncClient]:
    app = SecretsGuard(application, ("/v1", "/metrics"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        yield client


@pytest.mark.parametrize("path", ["/login", "/login/", "/v1/models", "/metrics"])
async def test_a_secret_is_looked_at_a_few_times(http: httpx.AsyncClient, path: str) -> None:
    statuses = [(await http.post(path, content="wrong")).status_code for _ in range(MAX_FAILURES)]
    assert set(statuses) == {400 if "login" in path else 401}
    refused = await http.post(path, content=RIGHT)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert "Too many failed attempts" in refused.text
    assert (await http.post("/other", content=RIGHT)).status_code == 200


async def test_the_api_is_answered_in_its_own_words(http: httpx.AsyncClient) -> None:
    for _ in range(MAX_FAILURES):
        await http.post("/v1/models", content="wrong")
    error = (await http.post("/v1/models", content=RIGHT)).json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "invalid_request_error")


async def test_passwords_sent_at_once_are_no_more_than_one_by_one(http: httpx.AsyncClient) -> None:
    done = await asyncio.gather(*(http.post("/login", content="wrong") for _ in range(50)))
    assert [answer.status_code for answer in done].count(400) == MAX_FAILURES


async def test_who_is_right_is_never_refused(http: httpx.AsyncClient) -> None:
    for path in ("/login", "/v1/models") * MAX_FAILURES * 2:
        assert (await http.post(path, content=RIGHT)).status_code == 200


@pytest.mark.parametrize(("wrong", "other"), [("/login", "/v1/models"), ("/v1/models", "/login")])
async def test_a_wrong_key_keeps_nobody_from_the_login_nor_the_other_way_round(
    http: httpx.AsyncClient, wrong: str, other: str
) -> None:
    for _ in range(MAX_FAILURES + 1):
        await http.post(wrong, content="wrong")
    assert (await http.post(other, content=RIGHT)).status_code == 200


async def test_another_address_goes_on() -> None:
    guarded = SecretsGuard(application, ("/v1",))
    for address, status in (("192.0.2.1", 429), ("2001:db8::1", 400)):
        transport = httpx.ASGITransport(guarded, client=("192.0.2.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            for _ in range(MAX_FAILURES):
                await client.post("/login", content="wrong")
        transport = httpx.ASGITransport(guarded, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            assert (await client.post("/login", content="wrong")).status_code == status


def test_a_closed_api_counts_no_failures(backend: FakeBackend) -> None:
    with TestClient(create_app(backend, policy=Policy(logins=(("me", "secret"),)))) as client:
        for _ in range(MAX_FAILURES * 2):
            assert client.get("/v1/models").status_code == 401
        assert client.post("/login", data={"username": "me", "password": "secret"}).status_code == 200


def test_wrong_admin_tokens_leave_the_api_open(backend: FakeBackend) -> None:
    access = Access(public=True, token="secret")
    for guess in range(MAX_FAILURES):
        with pytest.raises(InvalidRequestError):
            access.check(str(guess), "testclient")
    with TestClient(create_app(backend, access, Policy(api_key="key"))) as client:
        assert client.get("/v1/models", headers={"authorization": "Bearer key"}).status_code == 200
