"""Tests that call all routes of FastAPI and Gradio with valid and with hostile values: T1, T2, T12, T18."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from granite_demo.access import Access
from granite_demo.server.app import create_app
from granite_demo.server.policy import Policy
from granite_demo.server.run import running
from tests.fakes import FakeBackend
from tests.threats.stranger import TOKEN, Stranger, asked

OPEN, CLOSED = "open until somebody leaves", "closed"
PAGE = ("/", "/svelte/{path:path}", "/static/{path:path}", "/assets/{path:path}", "/favicon.ico", "/theme.css")
APP = ("/robots.txt", "/pwa_icon/{size}", "/pwa_icon", "/manifest.json", "/monitoring", "/monitoring/summary")
FILES: tuple[str, ...] = ("file={path_or_url:path}", "file/{path:path}", "proxy={url_path:path}")
FILES += ("custom_component/{id}/{environment}/{type}/{file_name}",)
EVENTS: tuple[str, ...] = (
    "api/{api_name}",
    "run/{api_name}",
    "call/v2/{api_name}",
    "call/{api_name}",
    "queue/join",
    "queue/data",
)
EVENTS += ("call/{api_name}/{event_id}", "call/v2/{api_name}/{event_id}", "component_server", "queue/status")
EVENTS += ("cancel", "reset", "heartbeat/{session_hash}", "startup-events", "process_recording")
MEDIA = "stream/{session_hash}/{run}/{component_id}/"
STREAMS: tuple[str, ...] = (
    "stream/{event_id}",
    "stream/{event_id}/close",
    f"{MEDIA}playlist.m3u8",
    f"{MEDIA}playlist-file",
)
STREAMS += (f"{MEDIA}{{segment_id}}.{{ext}}",)
OTHERS: tuple[str, ...] = (
    "user",
    "login_check",
    "token",
    "app_id",
    "dev/reload",
    "runs",
    "info",
    "openapi.json",
    "theme.css",
)
OTHERS += ("deep_link", "upload", "upload_progress")
VIBE = ("vibe-edit", "undo-vibe-edit", "vibe-code", "vibe-starter-queries")
OURS = ("/health", "/ready", "/metrics", "/load_model", "/openapi.json", "/words/{path:path}")
API = ("/v1/openapi.json", "/v1/models", "/v1/models/{name:path}", "/v1/chat/completions", "/v1/completions")
KNOWN = {*PAGE, *APP, *OURS, *API, "/login", "/logout", "/config", "/monitoring/{key}"}
KNOWN |= {f"/gradio_api/{name}" for name in (*FILES, *EVENTS, *STREAMS, *OTHERS, *VIBE)}
"""The reviewed routes. Review a new route before you add it here."""
ENDLESS = {"/gradio_api/heartbeat/{session_hash}", "/gradio_api/dev/reload", "/gradio_api/queue/data"}
ENDLESS |= {"/gradio_api/upload_progress"}

Row = tuple[str, str, str, int | str]


class Watched(FakeBackend):
    """Records calls that would change the server."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[str] = []

    def select(self, options: Any) -> None:
        self.changes.append("select")

    def cancel_load(self) -> None:
        self.changes.append("cancel_load")

    def unload(self) -> None:
        self.changes.append("unload")


def routes_of(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, method) of all routes, including those of mounted applications and included routers."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from routes_of(router.routes, prefix)
        elif hasattr(route, "methods"):
            for method in sorted(route.methods or ()):
                yield prefix + route.path, method
        elif hasattr(route.app, "routes"):
            yield from routes_of(route.app.routes, prefix + route.path)
        else:  # files
            yield f"{prefix}{route.path}/{{path:path}}", "GET"


def filled(path: str, value: str) -> str:
    """Return ``path`` with ``value`` for each parameter."""
    parts = path.split("{")
    return parts[0] + "".join(value + part.partition("}")[2] for part in parts[1:])


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("server") / "canary.txt"
    path.write_text("canary-of-a-file")
    return path


SECRETS = ("canary-of-a-file", "canary-of-the-environment", "canary-of-another", TOKEN)


class Scan:
    """Sends requests and records each one. Fails if an answer has a secret."""

    def __init__(self, http: Stranger) -> None:
        self.http = http
        self.rows: list[Row] = []

    def __call__(self, name: str, method: str, path: str, **values: Any) -> httpx.Response | None:
        try:
            response = self.http.request(method, path, timeout=values.pop("timeout", 10), **values)
        except httpx.TimeoutException:
            self.rows.append((name, method, path[:60], OPEN))
            return None
        except httpx.TransportError:  # the server closed the connection before it read the complete request
            self.rows.append((name, method, path[:60], CLOSED))
            return None
        self.rows.append((name, method, path[:60], response.status_code))
        found = [secret for secret in SECRETS if secret in response.text or secret in str(response.headers)]
        assert not found, (method, path, found)
        assert "Traceback" not in response.text
        return response


def files_below(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Scan, Watched, Any]]:
    """Yield a public page on which another visitor asked a question."""
    temporary, working = tmp_path / "gradio", tmp_path / "working"
    working.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(temporary))
    monkeypatch.setenv("HF_TOKEN", "canary-of-the-environment")
    monkeypatch.chdir(working)
    backend = Watched()
    app = create_app(backend, Access(True, TOKEN), Policy())
    source = Path(__file__).parents[2] / "granite_demo"
    before = files_below(working, source)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with running(app, backend) as url, Stranger(base_url=url) as http:
        http.config = http.get("/config").json()
        assert "canary-of-another" in http.ask("canary-of-another", session="another-0f8a3d")
        yield Scan(http), backend, app
        assert [path for path in files_below(tmp_path) if path.is_file()] == []
    assert files_below(working, source) == before
    assert backend.changes == []
    assert not backend.selected


def test_every_route_was_reviewed() -> None:
    app = create_app(Watched(), Access(True, TOKEN), Policy())
    unknown = {path.rstrip("/") or "/" for path, _ in routes_of(app.routes)} - KNOWN
    assert not unknown, f"look at these, then add them to KNOWN: {unknown}"


@pytest.mark.release
def test_t01_t02_t12_t18_no_route_changes_the_server_or_shows_a_secret(
    scan: tuple[Scan, Watched, Any], canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call, _, app = scan
    routes = sorted(set(routes_of(app.routes)))
    assert len(routes) > 100
    hostile = ["x", str(canary), f"..%2f..%2f..{canary}", "/proc/self/environ", "app.py", "http://127.0.0.1:1/x"]
    forms: list[Any] = [None, {"data": [], "fn_index": 0, "session_hash": "stranger"}, {"hash": f"../../{canary}"}]
    forms += [{"code": "import os", "prompt": "x", "fn_name": "os.system", "component_id": 0, "session_hash": "s"}]
    for path, method in routes:
        for value in hostile if "{" in path else [""]:
            for form in forms if method == "POST" else [None]:
                where = filled(path, value)
                params = {"session_hash": "stranger", "path": str(canary), "upload_id": "1"} if method == "GET" else {}
                wait = 0.3 if path in ENDLESS or path == "/load_model" else 10
                call(path, method, where, json=form, params=params, timeout=wait)
                if path in ENDLESS:
                    break
    assert not [row for row in call.rows if row[3] == OPEN and row[0] not in ENDLESS]
    with capsys.disabled():
        if os.environ.get("SHOW_ENDPOINTS"):
            seen: dict[tuple[str, str], set[str]] = {}
            for name, method, _, status in call.rows:
                seen.setdefault((name, method), set()).add(str(status))
            for (name, method), statuses in sorted(seen.items()):
                print(f"| `{name}` | {method} | {', '.join(sorted(statuses))} |")


@pytest.mark.release
def test_t01_t18_no_event_changes_the_server_or_shows_a_secret(scan: tuple[Scan, Watched, Any], canary: Path) -> None:
    call, _, _ = scan
    held = asked("mine")
    stolen = {"path": str(canary), "meta": {"_type": "gradio.FileData"}}
    evil = {**held, "documents": [stolen], "file": stolen}
    events = call.http.config["dependencies"]
    assert len(events) > 100
    threads = threading.active_count()
    for event in events:
        number, name = event["id"], event["api_name"]
        sensible = call.http.values(event)
        hostiles: list[list[Any]] = [[stolen] * len(sensible), [evil] * len(sensible), [None] * len(sensible), []]
        for data in [sensible, ["two"] * len(sensible), *hostiles]:
            body = {"data": data, "fn_index": number, "session_hash": "stranger"}
            if not event["queue"]:
                call(f"event {name}", "POST", "/gradio_api/run/predict", json=body)
        wrong = {**body, "data": ["wrong"] * len(sensible)}
        joined = call(f"event {name}", "POST", "/gradio_api/queue/join", json=wrong)
        assert joined is not None
        for way in ("run", "call", "api"):
            call(f"event {name}", "POST", f"/gradio_api/{way}/{name}", json=body)
    assert {row[3] for row in call.rows} <= {200, 400, 401, 403, 404, 405, 422, 429, 500, 503}
    assert call.http.get("/health").json()["status"] == "ok"
    assert threading.active_count() < threads + 60
