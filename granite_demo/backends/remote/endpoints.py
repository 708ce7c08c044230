"""The addresses of the servers and their states. A thread for each server probes it.

A probe gets the list of models. A request that fails marks the server as down immediately. A server that is down is
probed every second until it is up again.
"""

import logging
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from granite_demo.backends.remote.errors import explain
from granite_demo.errors import ConfigurationError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI


log = logging.getLogger(__name__)

UP_SECONDS = 10.0
"""Interval of the probes of a server that is up."""
DOWN_SECONDS = 1.0
"""Interval of the probes of a server that is down."""
LOOK_POLL_SECONDS = 0.01
"""Poll interval while ``wait`` waits for the first probes."""
CONNECT_SECONDS = 5.0
CHUNK_SECONDS = 120.0
"""Timeout for the next chunk. For the first chunk it includes the time in the queue of the server."""
SERVER_KINDS = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llamacpp": "llama.cpp",
    "library": "Ollama",
    "granite-demo": "granite-demo",
}
"""The software of a server by the value ``owned_by`` of its models."""
NO_LIST = (404, 405, 500, 501)
"""Status codes of a server that is up but has no list of models, such as transformers without a hub cache."""
NO_KEY = "none"
"""The key that is sent if there is none, because the client requires one."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a server offers. ``context_length`` is in tokens."""

    name: str
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of the last probe."""

    up: bool
    error: str = ""
    """The error if the server is not up."""
    models: tuple[ServedModel, ...] = ()
    kind: str = ""
    """The software, such as vLLM. Empty: not known."""


def parse_urls(text: str) -> tuple[str, ...]:
    """Parse comma-separated addresses. Each result ends in /v1. Raises ConfigurationError."""
    urls = tuple(dict.fromkeys(_parse(part.strip()) for part in text.split(",") if part.strip()))
    if not urls:
        raise ConfigurationError("The address of the server is missing. Give one, such as http://localhost:8000/v1.")
    return urls


def _parse(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # for example, the port is not a number
        usable = False
    if not usable or any(not letter.isprintable() or letter.isspace() for letter in text):
        raise ConfigurationError(
            "The address of a server must look like http://localhost:8000/v1. Separate several with commas."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        # The error does not show the text, because it can contain a secret.
        raise ConfigurationError(
            f"The address of {parts.hostname} must not contain credentials, a query or a fragment. "
            "Set the key with --backend-key or GRANITE_DEMO_BACKEND_KEY."
        )
    path = parts.path.rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path if path.endswith("/v1") else f"{path}/v1", "", ""))


@dataclass(eq=False)
class Endpoint:
    """One server: the result of the last probe, and what requests found out. A changed server resets the latter."""

    url: str
    """Ends in /v1, without credentials."""
    key: str = field(default="", repr=False)
    last_probe: ProbeResult | None = None
    """None before the first probe."""
    refused: frozenset[str] = frozenset()
    """Optional request fields that the server rejects. They are no longer sent."""
    unsupported: frozenset[str] = frozenset()
    """Features that the server does not have: ``logprobs``, ``echo``, ``tokenize``."""
    parses_reasoning: bool = False
    """Whether the server sends the thinking in a separate field."""
    wake: threading.Event = field(default_factory=threading.Event, repr=False)
    probed: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def up(self) -> bool:
        """Whether the server was up at the last probe."""
        return bool(self.last_probe and self.last_probe.up)

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models at the last probe. Empty: not known."""
        return self.last_probe.models if self.last_probe else ()

    @property
    def kind(self) -> str:
        """The software of the server. Empty: not known."""
        return self.last_probe.kind if self.last_probe else ""

    @property
    def address(self) -> str:
        """The address to show to users: without /v1."""
        return self.url.removesuffix("/v1")

    def serves(self, model: str) -> bool:
        """Return whether the server offers ``model``. True if its models are not known."""
        return not self.models or any(model == served.name for served in self.models)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()  # takes 20 ms, so all requests share it

    def connect(self) -> "AsyncOpenAI":
        """Return a client for one request. The caller must close it, in the event loop that uses it."""
        import openai

        limits = openai.Timeout(CHUNK_SECONDS, connect=CONNECT_SECONDS)
        client = openai.DefaultAsyncHttpxClient(verify=self._tls, timeout=limits)
        return openai.AsyncOpenAI(http_client=client, timeout=limits, **self._options())

    def _connect_to_probe(self) -> "OpenAI":
        import openai

        client = openai.DefaultHttpxClient(verify=self._tls, timeout=CONNECT_SECONDS)
        return openai.OpenAI(http_client=client, timeout=CONNECT_SECONDS, **self._options())

    def _options(self) -> dict[str, Any]:
        import openai

        # The client reads these from environment variables, which are for the service of OpenAI.
        unsent: Any = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
        return {
            "base_url": self.url,
            "api_key": self.key or NO_KEY,
            "max_retries": 0,
            "default_headers": unsent,
        }

    def failed(self, why: str) -> None:
        """Mark the server as down after a request failed with the text ``why``, and probe it again."""
        self.last_probe = ProbeResult(False, why, self.models, self.kind)
        self.wake.set()

    def probe(self) -> None:
        """Get the models of the server and update its state."""
        try:
            with self._connect_to_probe() as client:
                answer = client.models.with_raw_response.list().http_response
                found = _read_models(answer.json(), answer.headers.get("server", ""))
        except Exception as error:  # the thread must continue after any answer of the server
            if getattr(error, "status_code", None) in NO_LIST:
                found = ProbeResult(True)
            else:
                why = explain(error, self.address, "", self.key).user_text
                found = ProbeResult(False, why, self.models, self.kind)
        self._update(found)
        self.probed.set()

    def _update(self, now: ProbeResult) -> None:
        if now.up and now != self.last_probe:
            # The server was down or changed, so it can have other features now.
            self.refused, self.unsupported, self.parses_reasoning = frozenset(), frozenset(), False
        self.last_probe = now


def _read_models(answer: Any, server: str) -> ProbeResult:
    rows = answer["data"]
    models = tuple(ServedModel(str(row["id"]), _context_length(row)) for row in rows if row.get("id"))
    owners = [SERVER_KINDS[owner] for row in rows if (owner := row.get("owned_by")) in SERVER_KINDS]
    kind = SERVER_KINDS["llamacpp"] if server == "llama.cpp" else owners[0] if owners else ""
    return ProbeResult(True, "", models, kind)


def _context_length(row: dict[str, Any]) -> int | None:
    meta = row.get("meta")
    numbers = (row.get("max_model_len"), row.get("context_length"), meta.get("n_ctx") if isinstance(meta, dict) else 0)
    return next((number for number in numbers if isinstance(number, int) and number > 0), None)


class Endpoints:
    """All servers. Threads probe them from ``start`` to ``close``."""

    def __init__(self, urls: Sequence[str], key: str = "") -> None:
        self.all = tuple(Endpoint(url, key) for url in urls)
        self._turn = count()
        self._closed = threading.Event()
        self._started = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start to probe the servers. If that has started, probe them immediately."""
        with self._started:
            if self._closed.is_set():
                return
            for endpoint in self.all[len(self._threads) :]:
                thread = threading.Thread(
                    target=self._watch, args=(endpoint,), name=f"probe {endpoint.address}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        for endpoint in self.all:
            endpoint.wake.set()

    def _watch(self, endpoint: Endpoint) -> None:
        while not self._closed.is_set():
            endpoint.wake.clear()
            before = endpoint.up
            endpoint.probe()
            if endpoint.up and not before:
                log.info("The server at %s is up.", endpoint.address)
            elif before and not endpoint.up and endpoint.last_probe:
                log.warning("%s", endpoint.last_probe.error)
            endpoint.wake.wait(UP_SECONDS if endpoint.up else DOWN_SECONDS)

    def wait(self, seconds: float, for_all: bool = False) -> None:
        """Wait until one server is up or all have been probed. With ``for_all``, until all have been probed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all(endpoint.probed.is_set() for endpoint in self.all):
            if not for_all and any(endpoint.up for endpoint in self.all):
                return
            time.sleep(LOOK_POLL_SECONDS)

    def order(self, model: str) -> list[Endpoint]:
        """Return the servers to try for ``model``, in order: those that are up take turns, the others come last."""
        turn = next(self._turn) % len(self.all)
        return self._sorted(self.all[turn:] + self.all[:turn], model)

    def best(self, model: str) -> Endpoint:
        """Return the server for a small request about ``model``. This does not use up a turn."""
        return self._sorted(self.all, model)[0]

    @staticmethod
    def _sorted(ones: Sequence[Endpoint], model: str) -> list[Endpoint]:
        able = [endpoint for endpoint in ones if endpoint.serves(model)] or list(ones)
        return sorted(able, key=lambda endpoint: not endpoint.up)

    def close(self) -> None:
        """Stop the probes."""
        self._closed.set()
        for endpoint in self.all:
            endpoint.wake.set()
