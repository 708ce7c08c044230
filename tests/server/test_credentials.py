"""Nobody guesses a key or a password, one by one or all at once."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from granite_demo.access import MAX_FAILURES, Access
from granite_demo.errors import InvalidRequestError
from granite_demo.server.app import create_app
from granite_demo.server.credentials import Credentials
from granite_demo.server.guard import Guard
from granite_demo.server.policy import Policy
from tests.fakes import FakeBackend

RIGHT = "right"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads a password, takes a moment, and compares."""
    right = scope["path"].startswith("/login") and RIGHT in (await receive())["body"].decode()
    await asyncio.sleep(0.001)
    await PlainTextResponse("", 200 if right or not scope["path"].startswith("/login") else 400)(scope, receive, send)


def guard_of() -> Guard:
    return Guard(application, Policy(), Credentials(RIGHT, ("/v1", "/metrics")), Path("/nowhere"), set())


@asynccontextmanager
async def client_of(guard: Guard, address: str = "192.0.2.1") -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(guard, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        yield client


@pytest.fixture
async def http() -> AsyncGenerator[httpx.AsyncClient]:
    async with client_of(guard_of()) as client:
        yield client


async def attempt(http: httpx.AsyncClient, path: str, secret: str) -> httpx.Response:
    if path.startswith("/login"):
        return await http.post(path, data={"password": secret})
    return await http.get(path, headers={"authorization": f"Bearer {secret}"})


@pytest.mark.parametrize("path", ["/login", "/login/", "/v1/models", "/metrics"])
async def test_a_secret_is_looked_at_a_few_times(http: httpx.AsyncClient, path: str) -> None:
    statuses = [(await attempt(http, path, "wrong")).status_code for _ in range(MAX_FAILURES)]
    assert set(statuses) == {400 if "login" in path else 401}
    for _ in range(3):
        refused = await attempt(http, path, RIGHT)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert "Too many failed attempts" in refused.text
    assert (await http.get("/health")).status_code == 200


async def test_h1_no_other_way_to_write_the_path_is_one_more_attempt(http: httpx.AsyncClient) -> None:
    for path in ("/login%0a", "/login%0d%0a", "/login%00", "/x/..%2flogin"):
        assert (await attempt(http, path, RIGHT)).status_code == 404
    for path in ("/login", "/login/") * MAX_FAILURES:
        last = await attempt(http, path, "wrong")
    assert last.status_code == 429


async def test_l10_what_another_site_can_cause_is_no_attempt(http: httpx.AsyncClient) -> None:
    for _ in range(MAX_FAILURES * 2):
        assert (await http.get("/v1/models", headers={"sec-fetch-site": "cross-site"})).status_code == 401
        form = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
        assert (await http.post("/login", data={"password": "x"}, headers=form)).status_code == 403
    assert (await attempt(http, "/v1/models", RIGHT)).status_code == 200
    assert (await attempt(http, "/login", RIGHT)).status_code == 200


async def test_the_api_is_answered_in_its_own_words(http: httpx.AsyncClient) -> None:
    for _ in range(MAX_FAILURES):
        error = (await attempt(http, "/v1/models", "wrong")).json()["error"]
        assert error["code"] == "invalid_api_key"
    error = (await attempt(http, "/v1/models", RIGHT)).json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "invalid_request_error")


async def test_passwords_sent_at_once_are_no_more_than_one_by_one(http: httpx.AsyncClient) -> None:
    done = await asyncio.gather(*(attempt(http, "/login", "wrong") for _ in range(50)))
    assert [answer.status_code for answer in done].count(400) == MAX_FAILURES


async def test_who_is_right_is_never_refused(http: httpx.AsyncClient) -> None:
    for path in ("/login", "/v1/models") * MAX_FAILURES * 2:
        assert (await attempt(http, path, RIGHT)).status_code == 200


@pytest.mark.parametrize("scheme", ["Basic", "Token", "", "bearer"])
async def test_the_key_is_a_bearer_token(http: httpx.AsyncClient, scheme: str) -> None:
    answer = await http.get("/v1/models", headers={"authorization": f"{scheme} {RIGHT}"})
    assert answer.status_code == (200 if scheme == "bearer" else 401)


@pytest.mark.parametrize(("wrong", "other"), [("/login", "/v1/models"), ("/v1/models", "/login")])
async def test_a_wrong_key_keeps_nobody_from_the_login_nor_the_other_way_round(
    http: httpx.AsyncClient, wrong: str, other: str
) -> None:
    for _ in range(MAX_FAILURES + 1):
        await attempt(http, wrong, "wrong")
    assert (await attempt(http, other, RIGHT)).status_code == 200


async def test_another_address_goes_on() -> None:
    guard = guard_of()
    async with client_of(guard) as http:
        for _ in range(MAX_FAILURES):
            await attempt(http, "/login", "wrong")
    for address, status in (("192.0.2.1", 429), ("2001:db8::1", 400)):
        async with client_of(guard, address) as http:
            assert (await attempt(http, "/login", "wrong")).status_code == status


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
