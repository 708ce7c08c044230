"""A real server with a tiny random Granite model that a test makes fail, and the checks after each fault."""

import asyncio
import json
import socket
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from granite_demo.access import Limits
from granite_demo.backend import ManagedBackend
from granite_demo.backends.limited import LimitedBackend
from granite_demo.backends.local import LocalBackend
from granite_demo.backends.model_manager import Loader, ModelManager, ReadyModel
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.server.app import create_app
from granite_demo.server.policy import Policy
from granite_demo.server.run import running
from granite_demo.types.events import StreamEvent
from granite_demo.types.load_options import LoadOptions, Report
from granite_demo.types.requests import GenerationRequest
from tests.loaded import load_checkpoint
from tests.tinymodels import write_checkpoint

TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}w7"
GREEDY = {"prompt": "w1 w2 w3", "max_tokens": 12, "temperature": 0}
LONG = {**GREEDY, "max_tokens": 400, "stream": True}
CHAT = {"messages": [{"role": "user", "content": "w1 w2 w3"}], "max_tokens": 400, "temperature": 0}
UNREAD = 2.0
"""Seconds after which an answer ends that no page reads: fewer than those of a real server."""
SPARE_DESCRIPTORS = 2
"""Threads of pools of the standard library or of httpx, which start and stop at any time."""
SPARE_MB = 100
"""Memory that libraries allocate at first use and keep."""


class Faults:
    """Calls a function before each forward pass of a model, with the number of the pass since ``clear``."""

    def __init__(self, loaded: LoadedModel) -> None:
        loaded.model.register_forward_pre_hook(self._before, with_kwargs=True)
        self.caches: list[weakref.ref[Any]] = []
        """The number of passes since ``clear``."""
        self.clear()

    def clear(self) -> None:
        """Remove the fault."""
        self.passes = 0
        self.caches.clear()
        self.before: Callable[[int], None] = lambda number: None

    def raises(self, error: BaseException, at: int) -> None:
        """Raise ``error`` in pass number ``at`` only."""

        def before(number: int) -> None:
            if number == at:
                raise error

        self.clear()
        self.before = before

    def slow(self, seconds: float = 0.02) -> None:
        """Delay each pass, so that an answer continues until it is stopped."""
        self.clear()
        self.before = lambda number: time.sleep(seconds)

    def _before(self, module: Any, arguments: Any, named: dict[str, Any]) -> None:
        self.passes += 1
        self.caches.append(weakref.ref(named["past_key_values"]))
        self.before(self.passes)


class Watched(LocalBackend):
    """Records the event loop in which it runs."""

    loop: asyncio.AbstractEventLoop | None = None

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        self.loop = asyncio.get_running_loop()
        async with aclosing(super().stream(request)) as events:
            async for event in events:
                yield event


class Site:
    """A running server, with functions to send requests."""

    def __init__(self, url: str, backend: Watched, http: httpx.Client) -> None:
        self.url, self.backend, self.http = url, backend, http
        self.greedy = self.answer()
        # The first stream starts a task of the streaming library.
        http.post("/v1/completions", json={**GREEDY, "stream": True})
        self.config: dict[str, Any] = http.get("/config").json()

    def answer(self) -> str:
        """Return the greedy answer to a fixed prompt."""
        reply = self.http.post("/v1/completions", json=GREEDY)
        assert reply.status_code == 200, reply.text
        text: str = reply.json()["choices"][0]["text"]
        return text

    def busy(self) -> bool:
        """Return whether the engine has requests."""
        engine = self.backend.status().engine
        return bool(engine and (engine.running or engine.waiting))

    def send(self, path: str, body: dict[str, Any]) -> socket.socket:
        """Send a request on a new connection, and do not read the answer."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
        connection = socket.create_connection((self.http.base_url.host, self.http.base_url.port or 0))
        connection.sendall(f"{head}\r\n".encode() + data)
        return connection

    def join(self, session: str, text: str = "w1 w2 w3", tokens: int = 400) -> None:
        """Send a question on the Chat tab, as a browser does after Enter."""
        event = self._event("send")
        shown = [
            next(part["props"] for part in self.config["components"] if part["id"] == one) for one in event["inputs"]
        ]
        chosen = {"Message": text, "Max new tokens": tokens}
        self._join(session, event["id"], [chosen.get(props.get("label"), props.get("value")) for props in shown])

    def press(self, session: str, name: str) -> None:
        """Trigger an event without values: ``stop``, or ``leave`` for a page that is closed."""
        event = self._event(name)
        self._join(session, event["id"], [None] * len(event["inputs"]))

    def _event(self, name: str) -> dict[str, Any]:
        event: dict[str, Any] = next(one for one in self.config["dependencies"] if one["api_name"] == name)
        return event

    def _join(self, session: str, index: int, data: list[Any]) -> None:
        body = {"data": data, "fn_index": index, "session_hash": session}
        self.http.post("/gradio_api/queue/join", json=body).raise_for_status()

    def messages_to(self, session: str) -> Generator[dict[str, Any], None, None]:
        """Yield the messages to the page of ``session`` until the stream ends."""
        address = f"/gradio_api/queue/data?session_hash={session}"
        with self.http.stream("GET", address) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])


def wait_until(true: Callable[[], object], seconds: float) -> None:
    """Wait until ``true`` returns a true value. Fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)


@contextmanager
def unharmed(site: Site) -> Iterator[None]:
    """Check after a block with a fault that the server is healthy and idle, has no leak, and gives the same answers."""
    assert not site.busy()
    assert site.answer() == site.greedy
    memory = _megabytes()
    threads, descriptors, tasks = _threads(), _descriptors(), _tasks(site)
    yield
    wait_until(lambda: not site.busy(), 5)
    health = site.http.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert site.answer() == site.greedy
    _returns("threads", _threads, threads, 0)
    _returns("descriptors", _descriptors, descriptors, SPARE_DESCRIPTORS)
    _returns("tasks", lambda: _tasks(site), tasks, 0)
    _returns("MB of memory", _megabytes, memory, SPARE_MB)


def _returns(what: str, measure: Callable[[], int], before: int, spare: int) -> None:
    deadline = time.monotonic() + 5
    while (now := measure()) > before + spare:
        assert time.monotonic() < deadline, f"{now} {what} instead of {before}"
        time.sleep(0.05)


def _threads() -> int:
    """Count the threads of models. The number of the threads for requests grows to a limit."""
    return sum(thread.name.startswith(("engine", "loader", "switch")) for thread in threading.enumerate())


def _megabytes() -> int:
    return psutil.Process().memory_info().rss // 2**20


def _descriptors() -> int:
    return psutil.Process().num_fds()


def _tasks(site: Site) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    assert site.backend.loop is not None
    return asyncio.run_coroutine_threadsafe(count(), site.backend.loop).result(10)


def checkpoint(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Write the checkpoint of a tiny random Granite model, with or without a chat template."""
    write_checkpoint(folder, "granite")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def load(folder: Path) -> LoadedModel:
    """Load the checkpoint in ``folder`` on the CPU."""

    return load_checkpoint(folder)


def loader_of(folder: Path, keep: Callable[[LoadedModel], object] = lambda loaded: None) -> Loader:
    """Return a loader that always loads the checkpoint in ``folder`` and passes the model to ``keep``."""

    def open_model(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        from granite_demo.engine.factory import create_engine

        loaded = load(folder)
        keep(loaded)
        return ReadyModel(loaded, create_engine(loaded))

    return open_model


@contextmanager
def serving(loader: Loader, options: LoadOptions | None = None, limits: Limits | None = None) -> Iterator[Site]:
    """Run a separate server whose model is ready."""
    local = Watched(ModelManager(loader), options or LoadOptions())
    local.wait_until_ready()
    backend: ManagedBackend = LimitedBackend(local, limits) if limits else local
    with (
        running(create_app(backend, policy=Policy(unread=UNREAD)), backend) as url,
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        yield Site(url, local, http)
