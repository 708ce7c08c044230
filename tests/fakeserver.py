"""A fake server with OpenAI's API that can show the faults of real servers. It can be killed and started again."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from granite_demo.backends.remote.backend import RemoteBackend
from granite_demo.backends.remote.endpoints import Endpoints, parse_urls

Refuse = Callable[[dict[str, Any]], tuple[int, Any] | None]


def said(text: str, **delta: Any) -> dict[str, Any]:
    """Return a chunk of a chat with ``text``, or with other fields of its delta."""
    return {"choices": [{"index": 0, "delta": {"content": text, **delta} if text else delta}]}


def ended(reason: str = "stop") -> dict[str, Any]:
    """Return the chunk with the finish reason of a chat."""
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


class FakeServer:
    """Answers each request with ``chunks``, one every ``delay`` seconds. A string in ``chunks`` is sent unchanged.

    After ``drop_after`` chunks it closes the connection. ``refuse`` gets each body and can return a status and an
    answer, JSON or text, to send instead. A stream or a token count starts after ``first_delay`` seconds. ``usage`` is
    sent if the request includes the option. ``models`` are the rows of the list of models.
    """

    def __init__(self, chunks: Sequence[Any] = (said("Hello"), said(" world"), ended()), key: str = "") -> None:
        self.chunks: list[Any] = list(chunks)
        self.key = key
        self.delay = 0.0
        self.first_delay = 0.0
        self.drop_after: int | None = None
        self.refuse: Refuse = lambda body: None
        self.usage: dict[str, Any] | None = {"prompt_tokens": 7, "completion_tokens": 2}
        self.models: Any = [{"id": "granite-4.0-micro", "owned_by": "vllm", "max_model_len": 4096}]
        self.models_status = 200
        self.answer: Any = None
        self.tokenized: Any = None
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.running = 0
        self.port = 0
        self._http: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> int:
        """The number of requests for an answer."""
        return len(self.bodies)

    def start(self) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        """Stop the server and all its requests immediately."""
        if self._http is not None:
            http, self._http = self._http, None
            http.shutdown()
            http.socket.close()
            for connection in list(self._connections):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            deadline = time.monotonic() + 5
            while self._connections and time.monotonic() < deadline:
                time.sleep(0.01)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(_Handler):
            server_is = fake

        return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_is: FakeServer

    def setup(self) -> None:
        super().setup()
        self.server_is._connections.add(self.connection)

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.server_is._connections.discard(self.connection)

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.server_is
        if fake.key and self.headers.get("authorization") != f"Bearer {fake.key}":
            return self._send(401, {"error": {"message": f"Wrong key {self.headers.get('authorization')}"}})
        models = fake.models
        self._send(fake.models_status, models if isinstance(models, str) else {"object": "list", "data": models})

    def do_POST(self) -> None:
        fake = self.server_is
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            time.sleep(fake.first_delay)
            return self._send(200 if fake.tokenized else 404, fake.tokenized or {"detail": "Not Found"})
        fake.bodies.append(body)
        fake.paths.append(self.path)
        fake.headers.append(dict(self.headers))
        if fake.key and self.headers.get("authorization") != f"Bearer {fake.key}":
            return self._send(401, {"error": {"message": "Wrong key"}})
        if refused := fake.refuse(body):
            return self._send(*refused)
        if fake.answer is not None:
            return self._send(200, fake.answer)
        fake.running += 1
        try:
            self._stream(body)
        except OSError:
            self.close_connection = True
        finally:
            fake.running -= 1

    def _stream(self, body: dict[str, Any]) -> None:
        fake = self.server_is
        time.sleep(fake.first_delay)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        chunks = list(fake.chunks)
        if fake.usage and body.get("stream_options", {}).get("include_usage"):
            chunks.append({"choices": [], "usage": fake.usage})
        for number, chunk in enumerate(chunks):
            if number == fake.drop_after:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self._chunk(chunk if isinstance(chunk, str) else f"data: {json.dumps(chunk)}\n\n")
            time.sleep(fake.delay)
        self._chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, status: int, answer: Any) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "text/html" if isinstance(answer, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(*servers: FakeServer) -> Iterator[None]:
    """Run the servers during the block."""
    for server in servers:
        server.start()
    try:
        yield
    finally:
        for server in servers:
            server.kill()


@contextmanager
def remote(*servers: FakeServer, key: str = "", model: str = "") -> Iterator[RemoteBackend]:
    """Yield a backend for the servers, after each was probed once."""
    endpoints = Endpoints(parse_urls(",".join(server.url for server in servers)), key)
    backend = RemoteBackend(endpoints, model)
    backend.start()
    endpoints.wait(10, for_all=True)
    try:
        yield backend
    finally:
        backend.close()
