"""Nobody guesses a key or a password, one by one or all at once."""

import asyncio
from collections.abc import AsyncGenerator

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from granite_demo.access import MAX_FAILURES, Failures
from granite_demo.server.secrets_guard import SecretsGuard

RIGHT = "right"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, takes a moment, and compares."""
    body = (await receive())["body"].decode()
    await asyncio.sleep(0.001)
    wrong = 400 if scope["path"].startswith("/login") else 401
    await PlainTextResponse("", 200 if body == RIGHT else wrong)(scope, receive, send)


@pytest.fixture
async def http() -> AsyncGenerator[httpx.AsyncClient]:
    app = SecretsGuard(application, Failures(), ("/v1", "/metrics"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        yield client


@pytest.mark.parametrize("path", ["/login", "/login/", "/v1/models", "/metrics"])
async def test_a_secret_is_looked_at_a_few_times(http: httpx.AsyncClient, path: str) -> None:
    statuses = [(await http.post(path, content="wrong")).status_code for _ in range(MAX_FAILURES)]
    assert set(statuses) == {400 if "login" in path else 401}
    refused = await http.post(path, content=RIGHT)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert "Too many wrong" in refused.text
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


async def test_another_address_goes_on() -> None:
    guarded = SecretsGuard(application, Failures(), ("/v1",))
    for address, status in (("192.0.2.1", 429), ("2001:db8::1", 400)):
        transport = httpx.ASGITransport(guarded, client=("192.0.2.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            for _ in range(MAX_FAILURES):
                await client.post("/login", content="wrong")
        transport = httpx.ASGITransport(guarded, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            assert (await client.post("/login", content="wrong")).status_code == status
