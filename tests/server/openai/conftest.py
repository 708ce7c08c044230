"""The whole application on a real port, over a fake backend, and OpenAI's client in front of it."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from granite_demo.server.app import create_app
from granite_demo.server.run import running
from tests.fakes import FakeBackend


@pytest.fixture(scope="package")
def fake_server() -> Iterator[tuple[FakeBackend, str]]:
    backend = FakeBackend()
    with running(create_app(backend), backend) as url:
        yield backend, url


@pytest.fixture
def fake(fake_server: tuple[FakeBackend, str]) -> FakeBackend:
    """The fake backend behind the API, as new."""
    backend, _ = fake_server
    backend.__init__()  # type: ignore[misc]
    return backend


@pytest.fixture(scope="package")
def clients(fake_server: tuple[FakeBackend, str]) -> Iterator[tuple[httpx.Client, openai.OpenAI]]:
    """Made once: each reads all the certificates there are."""
    with (
        httpx.Client(base_url=fake_server[1], timeout=30) as http,
        openai.OpenAI(base_url=f"{fake_server[1]}/v1", api_key="any", max_retries=0, timeout=30) as client,
    ):
        yield http, client


@pytest.fixture
def http(fake: FakeBackend, clients: tuple[httpx.Client, openai.OpenAI]) -> httpx.Client:
    return clients[0]


@pytest.fixture
def client(fake: FakeBackend, clients: tuple[httpx.Client, openai.OpenAI]) -> openai.OpenAI:
    return clients[1]
