"""What a stranger may not send, tried as a stranger would: without the page. Each row is refused by one rule."""

import asyncio
import errno
import json
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.types import Receive, Scope, Send

from granite_demo.server import guard as guarding
from granite_demo.server.app import create_app
from granite_demo.server.credentials import Credentials
from granite_demo.server.guard import Guard
from granite_demo.server.policy import MAX_BODY, Policy, Quota
from granite_demo.server.route_table import UPLOAD
from tests.fakes import FakeBackend

RUN = "/gradio_api/run/predict"
JOIN = "/gradio_api/queue/join"
DATA = "/gradio_api/queue/data"
VISITOR = "192.0.2.1"
PROXY = "127.0.0.1"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(FakeBackend()), raise_server_exceptions=False) as client:
        yield client


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what arrives."""
    request = Request(scope, receive)
    body = await request.body()
    seen = {"method": request.method, "client": request.client.host if request.client else "", "body": body.decode()}
    await JSONResponse({**seen, "headers": dict(request.headers)})(scope, receive, send)


@asynccontextmanager
async def guarded(
    app: Any = application, host: str = VISITOR, guard: Guard | None = None, **policy: Any
) -> AsyncGenerator[httpx.AsyncClient]:
    """Yield a client at the address ``host`` of ``app`` behind a guard with ``policy``."""
    one = guard or guard_of(app, **policy)
    transport = httpx.ASGITransport(one, client=(host, 1), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://demo.example") as http:
        yield http


def guard_of(app: Any = application, **policy: Any) -> Guard:
    return Guard(app, Policy(**policy), Credentials("", ()), Path("/nowhere"), set())


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_an_end_is_refused(client: TestClient, chunked: bool) -> None:
    piece = b" " * 2**20
    content = iter([piece] * (MAX_BODY // 2**20 + 1)) if chunked else piece * (MAX_BODY // 2**20 + 1)
    response = client.post(RUN, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit/"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/gradio_api/dev/reload"),
        ("POST", "/gradio_api/stream/x"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/token"),
        ("POST", "/gradio_api/call/answer"),
        ("GET", "/gradio_api/proxy=https://example.org"),
        ("GET", "/monitoring/summary"),
        ("GET", "/v1"),
        ("GET", "/docs"),
    ],
)
def test_t12_what_the_page_does_not_use_is_not_there(client: TestClient, method: str, path: str) -> None:
    assert client.request(method, path).status_code == 404
    assert client.request(method, path).json() == {"error": "Not found."}


@pytest.mark.parametrize(
    "path",
    [
        *("/login%0a", "/login%0A", "/login%0d", "/login%00", "/login%09", "/login%7f", "/login%c2%85", "/login%ff"),
        *("/v1/models%0a", "/health%0a", "/metrics%0a", "/gradio_api/upload%0a", "/gradio_api/run/predict%0a"),
        *("//login", "/x/../login", "/./login", "/login/..", "/v1//models", "/%5clogin", "/login%5c", "/..%2flogin"),
        "http://demo.example/login",
    ],
)
async def test_a_path_that_can_be_read_in_two_ways_is_not_found(path: str) -> None:
    reached: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["path"])

    status = []

    async def send(message: Any) -> None:
        status.append(message.get("status"))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    for method in ("GET", "POST"):
        scope: dict[str, Any] = {"type": "http", "method": method, "path": unquote(path), "headers": []}
        scope |= {"query_string": b"", "client": (VISITOR, 1), "scheme": "http"}
        await guard_of(app)(scope, receive, send)
    assert (reached, set(status)) == ([], {404, None})


IDS = {
    "a session in the query": ("GET", f"{DATA}?session_hash={{}}", None),
    "the second of two": ("GET", f"{DATA}?session_hash=good&session_hash={{}}", None),
    "a session in the path": ("GET", "/gradio_api/heartbeat/{}", None),
    "an upload": ("POST", f"{UPLOAD}?upload_id={{}}", None),
    "the progress of an upload": ("GET", "/gradio_api/upload_progress?upload_id={}", None),
    "a session of a direct event": ("POST", RUN, "session_hash"),
    "a session of an event in the queue": ("POST", JOIN, "session_hash"),
    "a session of a function": ("POST", "/gradio_api/component_server", "session_hash"),
    "an event to cancel": ("POST", "/gradio_api/cancel", "event_id"),
}


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("value", ["x" * 65, "a b", "é", "a.b", ""], ids=["long", "space", "letter", "dot", "empty"])
async def test_h2_names_of_sessions_and_uploads_are_short(name: str, value: str) -> None:
    method, path, field = IDS[name]
    body: dict[str, Any] = {"json": {field: value, "data": []}} if field else {"files": {"files": ("a", b"")}}
    async with guarded() as http:
        wrong = await http.request(method, path.format(value), **(body if method == "POST" else {}))
        assert wrong.status_code in (400, 404)
        if field:
            body = {"json": {field: "x" * 64, "data": []}}
        right = await http.request(method, path.format("x" * 64), **(body if method == "POST" else {}))
        assert right.status_code == 200


@pytest.mark.parametrize("value", [7, True, ["x"], {"a": 1}], ids=str)
async def test_h2_a_name_of_another_type_is_refused(value: Any) -> None:
    async with guarded() as http:
        assert (await http.post(RUN, json={"session_hash": value, "data": []})).status_code == 400
        assert (await http.post(RUN, json={"session_hash": None, "data": []})).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"session_hash": "good", "session_hash": "not good"}', 400),
        (b'{"session\\u005fhash": "not good"}', 400),
        (b"[" * 100_000, 400),
        (b"[]", 400),
        (b"1" * 10_000, 400),
        (b"\xff", 400),
        (b"", 400),
        (b'{"data": [NaN]}', 200),
    ],
)
async def test_the_body_of_an_event_is_read_as_gradio_reads_it(body: bytes, status: int) -> None:
    async with guarded() as http:
        answer = await http.post(RUN, content=body, headers={"content-type": "application/json; charset=utf-8"})
        assert answer.status_code == status
        assert status == 400 or answer.json()["body"] == body.decode()


async def test_m9_half_a_character_becomes_a_mark_before_anything_reads_it() -> None:
    body = b'{"data": ["a\\ud83d b \\ud83d\\ude00"]}'
    async with guarded() as http:
        answer = await http.post(RUN, content=body, headers={"content-type": "application/json"})
    assert json.loads(answer.json()["body"]) == {"data": ["a\ufffd b 😀"]}


FORWARDED = {
    "x-forwarded-host": "evil.example",
    "x-forwarded-proto": "https",
    "x-forwarded-for": "198.51.100.7",
    "forwarded": "host=evil.example",
    "x-real-ip": "198.51.100.7",
    "x-gradio-server": "http://evil.example",
}


async def test_m8_what_a_proxy_says_is_read_from_a_trusted_one_only() -> None:
    async with guarded() as http:
        answer = (await http.get("/", headers=FORWARDED)).json()
        assert answer["client"] == VISITOR
        assert not answer["headers"].keys() & FORWARDED.keys()
    async with guarded(host=PROXY) as http:
        answer = (await http.get("/", headers=FORWARDED)).json()
        assert answer["client"] == "198.51.100.7"
        assert answer["headers"].keys() & FORWARDED.keys() == FORWARDED.keys() - {"x-gradio-server"}
    async with guarded(host=PROXY, hosts=("demo.example",)) as http:
        assert (await http.get("/", headers=FORWARDED)).status_code == 400
        assert (await http.get("/", headers={"x-forwarded-host": "demo.example"})).status_code == 200


def test_m8_no_cache_keeps_a_page(client: TestClient) -> None:
    for path in ("/", "/config", "/v1/models", "/health"):
        assert client.get(path).headers["cache-control"] == "no-store", path
    assert "evil" not in client.get("/config", headers=FORWARDED).text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("demo.example", 200), ("DEMO.example:7860", 200), ("evil.example", 400), ("demo.example.evil", 400)),
        *(("demo.example@evil", 400), ('"><script>', 400), ("a" * 300, 400), ("[::1]", 400)),
    ],
)
async def test_another_host_name_is_refused(host: str, status: int) -> None:
    async with guarded(hosts=("demo.example",)) as http:
        answer = await http.get("/", headers={"host": host})
        assert answer.status_code == status
        assert status == 200 or "--allowed-hosts" in answer.text
    async with guarded() as http:
        assert (await http.get("/", headers={"host": '"><script>'})).status_code == 400
        assert (await http.get("/", headers={"host": "[2001:db8::1]:7860"})).status_code == 200


OWN: dict[str, dict[str, str]] = {
    "a program": {},
    "the page": {"sec-fetch-site": "same-origin", "origin": "http://demo.example"},
    "the page, without fetch metadata": {"origin": "http://demo.example"},
    "the page behind a proxy that changes the host": {"sec-fetch-site": "same-origin", "origin": "https://a.example"},
}
OTHER: dict[str, dict[str, str]] = {
    "another site": {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    "a form of another site": {"sec-fetch-site": "cross-site"},
    "a sibling host": {"sec-fetch-site": "same-site", "origin": "http://b.demo.example"},
    "another site, without fetch metadata": {"origin": "https://evil.example"},
    "a file or a sandbox": {"origin": "null"},
}


@pytest.mark.parametrize(
    ("headers", "status"), [*((row, 200) for row in OWN.values()), *((r, 403) for r in OTHER.values())]
)
@pytest.mark.parametrize("path", ["/login", "/logout", RUN, JOIN, "/v1/completions"])
async def test_h5_l10_only_the_own_page_can_change_something(path: str, headers: dict[str, str], status: int) -> None:
    body: dict[str, Any] = {"data": {"a": "b"}} if path.startswith("/log") else {"json": {"data": []}}
    async with guarded() as http:
        assert (await http.post(path, headers=headers, **body)).status_code == status
        assert (await http.get("/config", headers=headers)).status_code == 200


ORIGINS = ["https://evil.example", "null", "http://b.demo.test", "http://localhost.evil.example"]


@pytest.mark.parametrize("host", ["demo.example", "localhost", "127.0.0.1", "testserver"])
@pytest.mark.parametrize("origin", ORIGINS)
def test_h5_no_origin_can_read_any_route(client: TestClient, origin: str, host: str) -> None:
    headers = {"origin": origin, "host": host}
    asked = {**headers, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    for path in ("/", "/config", "/v1/models", RUN, JOIN, "/login"):
        answers = [client.options(path, headers=asked), client.get(path, headers=headers)]
        answers.append(client.post(path, headers=headers, json={}))
        for answer in answers:
            assert not [name for name in answer.headers if name.startswith("access-control-allow-origin")], path
            assert "access-control-allow-credentials" not in answer.headers


def test_h5_an_origin_that_is_named_can_use_the_api() -> None:
    named, other = {"origin": "https://app.example"}, {"origin": "https://evil.example"}
    policy = Policy(origins=("https://app.example",))
    with TestClient(create_app(FakeBackend(), policy=policy)) as client:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = client.options("/v1/completions", headers={**named, **asked})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, named["origin"])
        answer = client.post("/v1/completions", headers=named, json={"prompt": "x"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, named["origin"])
        assert client.get("/nowhere", headers=named).headers["access-control-allow-origin"] == named["origin"]
        assert client.options("/v1/completions", headers={**other, **asked}).status_code == 400
        assert client.post("/v1/completions", headers=other, json={"prompt": "x"}).status_code == 403


async def with_cookies(scope: Scope, receive: Receive, send: Send) -> None:
    response = PlainTextResponse("")
    response.set_cookie("a", "1", httponly=True, samesite="none", secure=True)
    response.raw_headers.append((b"set-cookie", b"b=2; HttpOnly; Path=/"))
    await response(scope, receive, send)


@pytest.mark.parametrize(
    ("framed_by", "attributes", "ancestors"),
    [
        ("", [{"samesite=lax", "secure"}, {"samesite=lax"}], "'none'"),
        (
            "https://huggingface.co",
            [{"samesite=none", "secure", "partitioned"}] * 2,
            "'self' https://huggingface.co",
        ),
    ],
)
async def test_h5_cookies_and_frames(framed_by: str, attributes: list[set[str]], ancestors: str) -> None:
    async with guarded(with_cookies, framed_by=framed_by) as http:
        answer = await http.get("/")
    found = [{part.strip().lower() for part in text.split(";")[1:]} for text in answer.headers.get_list("set-cookie")]
    assert [one - {"httponly", "path=/"} for one in found] == attributes
    assert all("httponly" in one for one in found)
    assert f"frame-ancestors {ancestors}" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "GET", "HEAD", "OPTIONS"])
async def test_an_event_takes_one_method(method: str) -> None:
    async with guarded() as http:
        assert (await http.request(method, RUN)).status_code == 405


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        *((RUN, kind, 415) for kind in ("text/plain", "", "multipart/form-data; boundary=x", "application/x-json")),
        *(
            (path, "text/plain", 415)
            for path in (JOIN, "/gradio_api/component_server", UPLOAD, "/login", "/load_model")
        ),
        (RUN, "Application/JSON; charset=utf-8", 200),
        ("/login", "application/x-www-form-urlencoded", 200),
    ],
)
async def test_l10_a_body_has_the_type_of_its_route(path: str, kind: str, status: int) -> None:
    async with guarded() as http:
        answer = await http.post(path, content=b"{}", headers={"content-type": kind})
        assert answer.status_code == status


async def test_l9_a_request_with_two_lengths_is_refused_and_its_connection_closed() -> None:
    async with guarded() as http:
        answer = await http.post(RUN, content=b"{}", headers={"transfer-encoding": "chunked", "content-length": "2"})
        assert (answer.status_code, answer.headers["connection"]) == (400, "close")


def short(path: str, **more: Any) -> Callable[[httpx.AsyncClient], Any]:
    return lambda http: http.post(path, **more)


@pytest.mark.parametrize(
    ("quota", "ask", "what"),
    [
        (Quota(requests=3), lambda http: http.get("/health"), "requests"),
        (Quota(events=3), short(RUN, json={"session_hash": "a"}), "events"),
        (Quota(events=3), short(JOIN, json={"session_hash": "a"}), "events"),
        (Quota(pages=3), lambda http: http.get("/"), "pages"),
        (Quota(pages=3), lambda http: http.get("/config"), "pages"),
        (Quota(bytes=12_000), short(RUN, json={"session_hash": "a", "data": ["x" * 960]}), "bytes"),
        (Quota(uploads=3), short(UPLOAD, files={"files": ("a", b"x")}), "uploads"),
        (Quota(sessions=3), short(JOIN, json={}), "new sessions"),
    ],
)
async def test_h2_m5_an_address_has_a_quota_and_others_have_theirs(quota: Quota, ask: Any, what: str) -> None:
    guard = guard_of(quota=quota)
    async with guarded(guard=guard) as http:
        answers = [await ask(http) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert f"Your address sends too many {what}." in answers[-1].text
    assert int(answers[-1].headers["retry-after"]) > 0
    for other, status in (("192.0.2.2", 200), ("::ffff:192.0.2.1", 429)):
        async with guarded(host=other, guard=guard) as http:
            assert (await ask(http)).status_code == status


async def test_bytes_without_a_length_count_and_files_do_not() -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        yield b'{"session_hash": "a"}'

    async with guarded(quota=Quota(bytes=8 * 2**20)) as http:
        for status in (200, 429):
            answer = await http.post(RUN, content=chunks(), headers={"content-type": "application/json"})
            assert answer.status_code == status
        assert (await http.post(UPLOAD, files={"files": ("a", b"x" * 2**20)})).status_code == 200
        assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize("path", [f"{DATA}?session_hash={{}}", "/gradio_api/heartbeat/{}"])
async def test_h2_new_sessions_are_few_and_old_ones_go_on(path: str) -> None:
    async with guarded(quota=Quota(sessions=3)) as http:
        statuses = [(await http.get(path.format(number))).status_code for number in (1, 2, 3, 4, 1, 5, 3)]
        assert statuses == [200, 200, 200, 429, 200, 429, 200]
        assert (await http.post(RUN, json={"session_hash": "2"})).status_code == 200
        assert (await http.post(RUN, json={"session_hash": "6"})).status_code == 429


async def test_l7_addresses_of_one_network_are_one_visitor() -> None:
    guard = guard_of(quota=Quota(requests=2))
    statuses = []
    for host in ("2001:db8:1::1", "2001:db8:1:ffff::1", "2001:db8:1:2:3::4", "2001:db8:2::1"):
        async with guarded(host=host, guard=guard) as http:
            statuses.append((await http.get("/health")).status_code)
    assert statuses == [200, 200, 429, 200]


@pytest.mark.parametrize(("quota", "path"), [(Quota(direct=2), RUN), (Quota(open=2), "/gradio_api/heartbeat/a")])
async def test_t11_requests_at_the_same_time_are_limited_for_each_visitor(quota: Quota, path: str) -> None:
    entered, gate = asyncio.Semaphore(0), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entered.release()
        await gate.wait()
        await PlainTextResponse("done")(scope, receive, send)

    guard = guard_of(app, quota=quota)

    async def ask(host: str = VISITOR) -> int:
        async with guarded(host=host, guard=guard) as http:
            answer = await (http.post(path, json={"session_hash": "a"}) if path == RUN else http.get(path))
            return answer.status_code

    running = [asyncio.create_task(ask()) for _ in range(2)]
    for _ in running:
        await entered.acquire()
    assert await ask() == 429
    other = asyncio.create_task(ask("192.0.2.2"))
    await entered.acquire()
    gate.set()
    assert await asyncio.gather(*running, other) == [200] * 3
    assert await ask() == 200


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
async def test_m5_a_body_that_drips_is_ended(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "BODY_SECONDS", 0.1)
    path = RUN if kind == "application/json" else UPLOAD
    messages: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        messages.append(message)

    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "client": (VISITOR, 1)}
    scope |= {"headers": [(b"content-type", kind.encode())], "scheme": "http", "query_string": b""}
    async with asyncio.timeout(5):
        await guard_of(reads)(scope, receive, send)
    assert messages[0]["status"] in (408, 500)


@pytest.mark.parametrize(
    ("error", "status"), [(OSError(errno.ENOSPC, "canary"), 507), (ValueError("canary"), 500), (OSError("canary"), 500)]
)
async def test_m9_what_fails_reaches_no_log_and_no_answer(
    error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    with caplog.at_level(logging.ERROR):
        async with guarded(app) as http:
            answer = await http.get("/health")
    assert answer.status_code == status
    assert "canary" not in answer.text
    assert [record.name for record in caplog.records] == (["granite_demo.errors"] if status == 500 else [])


async def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await guard_of(RedirectResponse)({"type": "websocket", "path": "/v1/models", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
