"""Every route with hostile types, names, headers and sizes, from a small generator: nothing ends in a 500.

It prints the calls and their statuses with ``-s``. Another ``FUZZ_SEED`` in the environment gives other calls.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from granite_demo.access import Access
from granite_demo.server.app import create_app
from granite_demo.server.policy import PUBLIC_MAX_BODY, Policy
from granite_demo.server.run import running
from tests.bad_requests import CHAT, COMPLETION, PLAIN
from tests.fakes import FakeBackend
from tests.threats.stranger import EMPTY, TOKEN, Stranger, asked
from tests.threats.test_every_endpoint import ENDLESS, filled, routes_of

ALLOWED = {503, 507}
"""Statuses from 500 on that are not a fault: the server is full, or its disk is."""
ROUNDS = 12
"""Calls of each event."""


def deep(levels: int, part: Any = "x") -> Any:
    for _ in range(levels):
        part = [part]
    return part


FILE = {"meta": {"_type": "gradio.FileData"}}
NUMBERS: list[Any] = [0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, 1e308, -0.0, float("nan"), float("inf")]
TEXTS = ["", " ", "x", "0", "null", "\0", "\r\nFORGED", "\x1b[2J", "\ud83d", "a\udc00b", "\u202e", "é" * 100, "👩‍👧"]
TEXTS += ["x" * 70, "x" * 10_000, "<" * 10_000, "\n" * 10_000, "{{7*7}}", "<script>alert(1)</script>", "/" * 300, "%00"]
TEXTS += ["http://127.0.0.1:1/x", "data:text/plain,x", "file:///etc/passwd", "../../etc/passwd", "CON", "[" * 3000]
LISTS: list[Any] = [[], {}, [None], [[]], [{}], {"a": None}, {"": {}}, ["x"] * 1000, deep(50), deep(900)]
FILES = [{"path": path, **FILE} for path in ("/etc/passwd", "http://127.0.0.1:1/", "\0", "x" * 5000, None, ["x"])]
PARTS: list[Any] = [{"__type__": "update", "value": 1}, {"__type__": "update", "choices": 7}, {"__class__": "x"}, FILE]
PARTS += [{"role": "user"}, [{"role": 7, "content": {}}], EMPTY, {**EMPTY, "turns": 7}, {**EMPTY, "turns": [None]}]
PARTS += [{**asked("x"), "documents": [{}]}]
VALUES: list[Any] = [None, True, False, *NUMBERS, *TEXTS, *LISTS, *FILES, *PARTS]
IDS: list[Any] = [
    "stranger",
    "",
    "x" * 64,
    "x" * 65,
    "x" * 3000,
    "é",
    "a b",
    "\0",
    "../x",
    "%0a",
    "'",
    7,
    None,
    [],
    True,
]
HEADERS = [
    {},
    {"x-forwarded-for": "x" * 3000, "x-forwarded-host": "[::1"},
    {"x-forwarded-for": ",,, ,::1", "x-forwarded-proto": "gopher"},
    {"x-forwarded-host": "a@b:99999999"},
    {"x-gradio-server": "\x7f//["},
    {"cookie": "=;;=\x01; access-token-x=" + "x" * 2000},
    {"authorization": "Bearer " + "é" * 100},
    {"accept-encoding": "br;q=nan, *", "accept-language": "x" * 2000},
    {"range": "bytes=9-1,-", "if-range": "x"},
    {"range": "bytes=0-" + "9" * 100},
    {"if-none-match": '"' * 100, "if-modified-since": "\x7f"},
    {"content-type": "application/json; charset=utf-7"},
    {"content-type": "multipart/form-data"},
    {"content-type": "multipart/form-data; boundary=" + "x" * 300},
    {"content-type": ";", "content-encoding": "gzip"},
    {"expect": "x"},
    {"origin": "https://evil.example"},
    {"origin": "\x7f", "sec-fetch-site": "x", "referer": "\x7f" * 100},
]
BODIES: list[bytes] = [b"", b"{", b"[]", b"null", b"7", b'"x"', b"[" * 50_000, b"{}" * 10, b"\xff\xfe", b"\0" * 1000]
BODIES += [b'{"data":' + b"9" * 5000 + b"}", b'{"data": [], "data": 7}', b"--x\r\n\r\nx\r\n--x--\r\n", b" " * 100_000]
METHODS = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"]
FORM = "multipart/form-data; boundary=x"
NAMES = [
    "",
    "x",
    "../x",
    "/etc/passwd",
    "x" * 1000,
    "a\tb",
    "é.txt",
    "CON.txt",
    ".",
    "..",
    "a/b/c",
    "\\",
    "x\r\ny",
    "x.docx",
]
FIELDS = ["fn_index", "component_id", "fn_name", "data", "trigger_id", "event_data", "batched", "simple_format"]


class Fuzzer:
    """Sends calls and keeps their statuses, and the calls that failed."""

    def __init__(self, http: Stranger) -> None:
        self.http, self.pick = http, random.Random(int(os.environ.get("FUZZ_SEED", "0")))
        self.statuses: Counter[str] = Counter()
        self.failed: list[tuple[Any, ...]] = []

    def send(self, method: str, path: str, timeout: float = 20, **values: Any) -> None:
        headers = {**self.pick.choice(HEADERS), **values.pop("headers", {})}
        raw = [(name.encode(), str(value).encode("utf-8", "replace")) for name, value in headers.items()]
        try:
            answer = self.http.request(method, path, headers=raw, timeout=timeout, **values)
        except httpx.TimeoutException:
            self.statuses["open"] += 1
            if not any(path.startswith(one.partition("{")[0]) for one in ENDLESS) and path != "/load_model":
                self.failed.append((method, path, "no answer", headers, str(values)[:300]))
            return
        except (httpx.TransportError, httpx.InvalidURL):
            self.statuses["closed"] += 1
            return
        self.statuses[str(answer.status_code)] += 1
        if answer.status_code >= 500 and answer.status_code not in ALLOWED:
            self.failed.append((method, path, answer.status_code, headers, str(values)[:300], answer.text[:200]))

    def post(self, path: str, value: Any, **more: Any) -> None:
        body = json.dumps(value).encode()
        self.send("POST", path, content=body, headers={"content-type": "application/json"}, **more)


@pytest.fixture
def fuzzer(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Fuzzer]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    backend = FakeBackend()
    app = create_app(backend, Access(True, TOKEN), Policy(max_body=PUBLIC_MAX_BODY))
    with running(app, backend) as url, Stranger(base_url=url, timeout=20) as http:
        http.config = http.get("/config").json()
        fuzzer = Fuzzer(http)
        yield fuzzer
        assert http.get("/health").json()["status"] == "ok"
        assert http.get("/").status_code == 200
        print(f"\n{sum(fuzzer.statuses.values())} calls: {dict(sorted(fuzzer.statuses.items()))}")
    assert not fuzzer.failed, "\n".join(map(str, fuzzer.failed[:20]))


@pytest.mark.release
def test_no_event_of_the_page_fails(fuzzer: Fuzzer, caplog: pytest.LogCaptureFixture) -> None:
    pick = fuzzer.pick
    for event in fuzzer.http.config["dependencies"]:
        for _ in range(ROUNDS):
            data = fuzzer.http.values(event)
            for place in pick.sample(range(len(data)), min(len(data), pick.choice((1, 1, 2, 5)))):
                data[place] = pick.choice(VALUES)
            data = pick.choice([data, data, data, data, [], data * 2, [pick.choice(VALUES)] * len(data)])
            body: dict[str, Any] = {"data": data, "fn_index": event["id"], "session_hash": f"s{pick.randrange(20)}"}
            if not pick.randrange(4):
                body[pick.choice(["session_hash", "event_id", *FIELDS])] = pick.choice(VALUES + IDS)
            fuzzer.post("/gradio_api/queue/join" if event["queue"] else "/gradio_api/run/predict", body)
    assert "FORGED" not in caplog.text


@pytest.mark.release
def test_no_request_to_the_api_fails(fuzzer: Fuzzer) -> None:
    pick = fuzzer.pick
    schema = fuzzer.http.get("/v1/openapi.json").json()["components"]["schemas"]
    for path, name in ((CHAT, "ChatRequest"), (COMPLETION, "CompletionRequest")):
        for field in schema[name]["properties"]:
            for value in pick.sample(VALUES, 20):
                fuzzer.post(path, {**PLAIN[path], field: value})
        for value in VALUES:
            user: dict[str, Any] = {"role": "user", "content": value}
            tool = {"type": "function", "function": {"name": "x", "parameters": value}}
            for more in ({"messages": [value], "unknown": value}, {"messages": [user]}, {"tools": [tool]}):
                fuzzer.post(path, {**PLAIN[path], **more})
            fuzzer.post(path, {**PLAIN[path], "messages": [{**user, "content": [value]}], "stream": True})
            fuzzer.post(path, value)
            fuzzer.post("/load_model", {"model": value}, timeout=0.5)


@pytest.mark.release
def test_no_route_fails(fuzzer: Fuzzer) -> None:
    pick = fuzzer.pick
    app = create_app(FakeBackend(), Access(True, TOKEN))
    for path, method in sorted(set(routes_of(app.routes))):
        timeout = 0.5 if path in ENDLESS or path == "/load_model" else 20
        for _ in range(6 if path in ENDLESS else 25):
            where = filled(path, quote(str(pick.choice(IDS)), safe="/%"))
            names = ("session_hash", "upload_id", "path", "event_id", "deep_link", "__theme", "x" * 50)
            query = {name: str(pick.choice(IDS)) for name in pick.sample(names, 3)}
            fuzzer.send(method, where, params=query, timeout=timeout)
            if method == "POST":
                kind = pick.choice(["application/json", "text/plain", FORM])
                fuzzer.send(method, where, content=pick.choice(BODIES), headers={"content-type": kind}, timeout=timeout)
                body = {"session_hash": pick.choice(IDS), "event_id": pick.choice(IDS)}
                fuzzer.post(where, {**body, **{name: pick.choice(VALUES) for name in FIELDS}}, timeout=timeout)
            fuzzer.send(pick.choice(METHODS), where, timeout=timeout)


@pytest.mark.release
def test_no_upload_fails(fuzzer: Fuzzer) -> None:
    pick = fuzzer.pick
    paths = ["/gradio_api/upload", "/gradio_api/upload", "/login", "/gradio_api/component_server"]
    for _ in range(300):
        field = pick.choice(["files", "files", "file", "", "session_hash", "x" * 9000])
        sizes = [pick.choice([0, 1, 1000, 300_000]) for _ in range(pick.choice([0, 1, 3, 60]))]
        files = [(field, (pick.choice(NAMES), pick.randbytes(size))) for size in sizes]
        fields = {pick.choice(["files", "session_hash", "component_id"]): pick.choice(["x", "7", ""])}
        path = pick.choice(paths)
        fuzzer.send("POST", path, files=files, data=fields, params={"upload_id": str(pick.choice(IDS))})
        fuzzer.send("POST", path, content=pick.choice(BODIES), headers={"content-type": FORM})
