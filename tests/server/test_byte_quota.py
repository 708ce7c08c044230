"""The bytes of one address: before a body is read, and for each address alone."""

from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from granite_demo.server import byte_quota
from granite_demo.server.byte_quota import UNKNOWN_BYTES, ByteQuota
from granite_demo.server.uploads import UPLOADS

MOST = 4 * UNKNOWN_BYTES


async def send(quota: ByteQuota, size: int, host: str = "192.0.2.1", path: str = "/v1/x", stream: bool = False) -> int:
    async def parts() -> AsyncIterator[bytes]:
        yield b"x" * size

    async with httpx.AsyncClient(transport=httpx.ASGITransport(quota, client=(host, 1)), base_url="http://x") as http:
        answer = await http.post(path, content=parts() if stream else b"x" * size)
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) > 0
        return answer.status_code


@pytest.fixture
def quota() -> ByteQuota:
    """``MOST`` bytes a minute, a quarter of them at once."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("done")(scope, receive, send)

    return ByteQuota(app, MOST)


async def test_an_address_has_a_quota_of_its_own(quota: ByteQuota) -> None:
    half = MOST // 8
    assert [await send(quota, half) for _ in range(3)] == [200, 200, 429]
    assert await send(quota, half, "192.0.2.2") == 200
    assert await send(quota, 0) == 200
    assert await send(quota, half, path=UPLOADS) == 200


async def test_bytes_come_back_in_time(quota: ByteQuota, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_quota, "MINUTE_SECONDS", 0.001)
    assert [await send(quota, MOST // 4) for _ in range(3)] == [200] * 3


async def test_a_body_without_a_length_counts_as_a_large_one(quota: ByteQuota) -> None:
    assert [await send(quota, 10, stream=True) for _ in range(2)] == [200, 429]


async def test_addresses_are_forgotten(quota: ByteQuota, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_quota, "MAX_ADDRESSES", 3)
    for number in range(10):
        assert await send(quota, 1, f"192.0.2.{number}") == 200
    assert len(quota._left) == 3
