"""Connections of dishonest clients: half open, slow, and very many."""

import logging
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from uvicorn.middleware.proxy_headers import _TrustedHosts

from granite_demo.server import connections
from granite_demo.server.app import create_app
from granite_demo.server.connections import ConnectionLimits, raise_descriptors
from granite_demo.server.policy import Policy, Quota
from granite_demo.server.run import running
from tests.fakes import FakeBackend

HALF = b"GET /health HTTP/1.1\r\nhost: x\r\n"
STRANGER = "127.0.0.2"
"""An address of this machine that is no trusted proxy."""


@contextmanager
def server(**policy: Quota) -> Iterator[tuple[str, tuple[str, int]]]:
    backend = FakeBackend()
    with running(create_app(backend, policy=Policy(**policy)), backend) as url:  # type: ignore[arg-type]
        yield url, (str(urlsplit(url).hostname), int(urlsplit(url).port or 0))


def connected(address: tuple[str, int], stack: ExitStack, host: str = STRANGER) -> socket.socket:
    one = stack.enter_context(socket.create_connection(address, 5, source_address=(host, 0)))
    one.settimeout(5)
    return one


def is_closed(one: socket.socket) -> bool:
    try:
        return one.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [b"", HALF, b"G"], ids=["nothing", "half a head", "a byte"])
def test_m5_a_head_that_does_not_arrive_ends_the_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with server() as (url, address), ExitStack() as stack:
        many = [connected(address, stack) for _ in range(100)]
        for one in many:
            one.sendall(sent)
        assert httpx.get(f"{url}/health").status_code == 200
        assert all(is_closed(one) for one in many)
        assert httpx.get(f"{url}/health").status_code == 200


def test_m5_a_head_that_drips_ends_too_and_a_slow_answer_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with server() as (_, address), ExitStack() as stack:
        slow, second = connected(address, stack), connected(address, stack)
        listening = connected(address, stack)
        listening.sendall(b"GET /gradio_api/heartbeat/a HTTP/1.1\r\nhost: x\r\n\r\n")
        second.sendall(HALF + b"\r\n")
        assert second.recv(12) == b"HTTP/1.1 200"
        second.sendall(HALF)  # the head of a second request, within the time of keep-alive
        with pytest.raises((ConnectionError, TimeoutError)):
            for _ in range(20):
                slow.sendall(b"x")
                time.sleep(0.1)
        assert listening.recv(12) == b"HTTP/1.1 200"
        while not is_closed(second):  # the rest of the first answer, then the end
            pass
        assert listening.recv(1), "the request that is under way goes on"


def test_m5_an_address_holds_a_few_connections_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "granite_demo")
    with server(quota=Quota(connections=5)) as (url, address), ExitStack() as stack:
        first = [connected(address, stack) for _ in range(5)]
        assert all(is_closed(connected(address, stack)) for _ in range(200))
        assert httpx.get(f"{url}/health").status_code == 200  # from a trusted proxy
        connected(address, stack, "127.0.0.3").sendall(HALF + b"\r\n")
        first[0].close()
        deadline = time.monotonic() + 5
        while True:
            again = connected(address, stack)
            again.sendall(HALF + b"\r\n")
            if not is_closed(again):
                break
            assert time.monotonic() < deadline
    lines = [record for record in caplog.records if "too many" in record.message]
    assert len(lines) == 1


def test_m5_connections_of_all_are_counted() -> None:
    limits = ConnectionLimits(Quota(connections=2), 3, _TrustedHosts("10.0.0.0/8"))
    left = [limits.enter(host) for host in ("192.0.2.1", "192.0.2.1", "192.0.2.1", "10.1.1.1", "192.0.2.2")]
    assert [one is not None for one in left] == [True, True, False, True, False]
    assert left[3]
    left[3]()
    assert limits.enter("192.0.2.2")


def test_m5_new_connections_of_an_address_are_counted() -> None:
    limits = ConnectionLimits(Quota(new_connections=2), 100, _TrustedHosts("10.0.0.0/8"))
    entered = []
    for host in ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", *["10.1.1.1"] * 5):
        leave = limits.enter(host)
        entered.append(leave is not None)
        if leave:
            leave()
    assert entered == [True, True, False, *[True] * 6]


def test_m5_descriptors_are_raised_to_what_the_process_may_have() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, before[1]), before[1]))
        allowed = raise_descriptors()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        assert 256 <= allowed <= connections.MAX_CONNECTIONS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /login HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /login HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n12345",
        b"GET /login HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nx y: z\r\n\r\n",
    ],
)
def test_l9_what_can_be_read_as_two_requests_is_refused_and_the_connection_closed(head: bytes) -> None:
    with server() as (_, address), ExitStack() as stack:
        one = connected(address, stack)
        one.sendall(head)
        answer = b""
        while piece := one.recv(4096):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1


def test_an_upgrade_is_a_plain_request(caplog: pytest.LogCaptureFixture) -> None:
    with server() as (url, _):
        answer = httpx.get(f"{url}/health", headers={"connection": "upgrade", "upgrade": "websocket"})
    assert answer.status_code == 200
    assert not caplog.records
