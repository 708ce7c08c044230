"""A hub on loopback with the API that huggingface_hub uses. It can fail in all the ways of a real hub.

    with FakeHub() as hub:
        hub.add("ibm-granite/tiny", model_files())
        fetch("ibm-granite/tiny", None, report, cancelled, cache_dir=tmp_path, endpoint=hub.url)

Requests for large files (``*.safetensors``, ``*.bin``) are redirected to another host name, as on the real hub.
"""

import hashlib
import http.server
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

BLOCK = 2**14


def safetensors(size: int, seed: int = 0) -> bytes:
    """Return a valid safetensors file with about ``size`` bytes of data."""
    data = hashlib.shake_128(bytes([seed])).digest(size)
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def model_files(size: int = 100_000) -> dict[str, bytes]:
    """Return the files of a small model."""
    return {
        "config.json": b'{"model_type": "granite"}',
        "tokenizer.json": b'{"version": "1.0"}' * 100,
        "model.safetensors": safetensors(size),
    }


@dataclass(slots=True)
class Request:
    """One request to the hub. ``sent`` is the number of bytes of the body; ``ended`` is set after the last one."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    encoding: str | None
    status: int = 0
    sent: int = 0
    ended: bool = False


@dataclass(slots=True)
class Repo:
    """The files of each commit, oldest first, and the commit of each branch."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


class FakeHub:
    """The attributes can be set at any time, from any thread."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.rate: float | None = None
        """The bytes per second of each large file. None: no limit."""
        self.cut: dict[str, int] = {}
        """By file name: the number of bytes after which the connection ends, once."""
        self.reset: bool = False
        """Whether a cut connection ends with a reset."""
        self.stall: dict[str, int] = {}
        """By file name: the number of bytes after which no more are sent on the open connection."""
        self.corrupt: dict[str, int] = {}
        """By file name: how many more times zeros replace the first bytes."""
        self.ranges = True
        """Whether a Range header is obeyed (206) or ignored."""
        self.gated: tuple[int, str | None] | None = None
        """(status, X-Error-Code) of the response to each file request; the listing is public: (403, "GatedRepo")."""
        self.refused: tuple[int, str | None] | None = None
        """(status, X-Error-Code) of each response: (401, None), (404, "RepoNotFound"), (503, None)."""
        self.hook: Callable[[Request], object] = lambda request: None
        """Called with each request before the response. It can set the other attributes."""
        self.closing = threading.Event()
        hub = self

        class Handler(_Handler):
            def __init__(self, *args: Any) -> None:
                self.hub = hub
                super().__init__(*args)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.files_url = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Publish a commit with these files and return its hash."""
        repo = self.repos.setdefault(repo_id, Repo())
        commit = hashlib.sha1(f"{repo_id} {len(repo.commits)}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        return commit

    def transfers(self, name: str) -> list[Request]:
        """Return the requests for the content of this file, in order."""
        return [
            request
            for request in list(self.requests)
            if request.method == "GET" and request.path.endswith(f"/{name}") and request.status in (200, 206)
        ]


class _Handler(http.server.BaseHTTPRequestHandler):
    """HTTP 1.0: one connection for each request."""

    hub: FakeHub
    request_log: Request

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        get = self.headers.get
        headers = (get("Range"), get("Authorization"), get("Accept-Encoding"))
        self.request_log = Request(self.command, unquote(self.path), *headers)
        self.hub.requests.append(self.request_log)
        self.hub.hook(self.request_log)
        with suppress(ConnectionError):
            self._route()
        self.request_log.ended = True

    def _route(self) -> None:
        if self.hub.refused:
            return self._refuse(*self.hub.refused)
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        match parts:
            case ["api", "models", owner, name]:
                self._info(f"{owner}/{name}", "main", "blobs" in parse_qs(url.query))
            case ["api", "models", owner, name, "revision", revision]:
                self._info(f"{owner}/{name}", revision, "blobs" in parse_qs(url.query))
            case ["api", "models", owner, name, "tree", revision]:
                self._tree(f"{owner}/{name}", revision)
            case [owner, name, "resolve", revision, *path] if path:
                self._resolve(f"{owner}/{name}", revision, "/".join(path))
            case ["files", owner, name, commit, *path] if path:
                self._content("/".join(path), self.hub.repos[f"{owner}/{name}"].commits[commit]["/".join(path)])
            case _:
                self._refuse(404, None)

    def _commit(self, repo_id: str, revision: str) -> str | None:
        """Return the commit, or None after a response with 404."""
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            self._refuse(404, "RepoNotFound")
            return None
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._refuse(404, "RevisionNotFound")
            return None
        return commit

    def _info(self, repo_id: str, revision: str, with_sizes: bool) -> None:
        if commit := self._commit(repo_id, revision):
            siblings: list[dict[str, Any]] = []
            for name, data in self.hub.repos[repo_id].commits[commit].items():
                more: dict[str, Any] = {"size": len(data), "blobId": git_hash(data)}
                if is_large(name):
                    more["lfs"] = {"sha256": etag(name, data), "size": len(data), "pointerSize": 134}
                siblings.append({"rfilename": name, **(more if with_sizes else {})})
            self._json({"_id": "0", "id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings})

    def _tree(self, repo_id: str, revision: str) -> None:
        if commit := self._commit(repo_id, revision):
            entries: list[dict[str, Any]] = []
            for name, data in self.hub.repos[repo_id].commits[commit].items():
                entry = {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
                if is_large(name):
                    entry["lfs"] = {"oid": etag(name, data), "size": len(data), "pointerSize": 134}
                entries.append(entry)
            self._json(entries)

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        if self.hub.gated:
            return self._refuse(*self.hub.gated)
        if not (commit := self._commit(repo_id, revision)):
            return None
        data = self.hub.repos[repo_id].commits[commit].get(name)
        if data is None:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        if not is_large(name):
            return self._content(name, data, {"X-Repo-Commit": commit, "ETag": f'"{etag(name, data)}"'})
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag(name, data)}"', "X-Repo-Commit": commit}
        location = f"{self.hub.files_url}/files/{quote(repo_id)}/{commit}/{quote(name)}"
        return self._answer(302, {**linked, "Location": location, "Content-Length": "0"})

    def _content(self, name: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        start, status, headers = 0, 200, {"Accept-Ranges": "bytes", **(headers or {})}
        if self.command == "GET" and self.hub.corrupt.get(name, 0) > 0:
            self.hub.corrupt[name] -= 1
            data = bytes(min(1000, len(data))) + data[1000:]
        if self.hub.ranges and (wanted := self.headers.get("Range")):
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(status, {**headers, "Content-Length": str(len(data) - start)})
        if self.command == "GET":
            self._send(name, data, start)

    def _send(self, name: str, data: bytes, start: int) -> None:
        end = self.hub.cut.pop(name, None)
        stop = self.hub.stall.get(name, len(data))
        began = time.monotonic()
        for at in range(start, len(data) if end is None else end, BLOCK):
            block = data[at : min(at + BLOCK, len(data) if end is None else end)]
            while at >= stop or self._is_early(name, at - start, began):
                if self.hub.closing.wait(0.02) or self._is_gone():
                    return
                stop = self.hub.stall.get(name, len(data))
            self.wfile.write(block)
            self.request_log.sent += len(block)
        if end is not None and self.hub.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.close(self.connection.detach())

    def _is_early(self, name: str, sent: int, began: float) -> bool:
        return self.hub.rate is not None and is_large(name) and time.monotonic() < began + sent / self.hub.rate

    def _is_gone(self) -> bool:
        self.connection.settimeout(0.001)
        try:
            return not self.connection.recv(1)
        except TimeoutError:
            return False
        finally:
            self.connection.settimeout(None)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._answer(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _refuse(self, status: int, code: str | None, headers: dict[str, str] | None = None) -> None:
        self._answer(status, {**({"X-Error-Code": code} if code else {}), "Content-Length": "0", **(headers or {})})

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.request_log.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def is_large(name: str) -> bool:
    """Whether the hub stores the file outside the repository, as Git LFS does."""
    return name.endswith((".safetensors", ".bin"))


def git_hash(data: bytes) -> str:
    """Return the hash of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def etag(name: str, data: bytes) -> str:
    """Return the hash of a file on the hub and in the cache."""
    return hashlib.sha256(data).hexdigest() if is_large(name) else git_hash(data)


GRANITE = "granite-4.0-350m"
GGUF_REPO, GGUF = f"ibm-granite/{GRANITE}-GGUF", f"{GRANITE}-Q8_0.gguf"
GGUF_FILES = {
    f"{GRANITE}-f16.gguf": b"GGUF" * 1000,
    GGUF: b"GGUF, but no model" * 3,
    f"{GRANITE}-Q6_K.gguf": b"GGUF, but no model" * 2,
    f"{GRANITE}-Q4_K_M.gguf": b"GGUF, but no model",
}


@contextmanager
def gguf_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the safetensors and GGUF files of a model, none of which can be loaded; ``cache`` is the hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with FakeHub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        server.add(GGUF_REPO, GGUF_FILES)
        server.add(f"ibm-granite/{GRANITE}", model_files())
        yield server
