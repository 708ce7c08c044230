"""The addresses of the servers that may answer, and which of them are up: each is looked at by a thread of its own.

Looking is asking for the list of models. A request that fails tells it at once, and a server that was down is looked
for every few seconds until it is back.
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
"""Between two looks at a server that is up."""
DOWN_SECONDS = 1.0
"""Between two looks at one that is down."""
WAIT_SECONDS = 0.01
"""Between two questions whether a first look is over."""
CONNECT_SECONDS = 5.0
READ_SECONDS = 120.0
"""For the next chunk: the first one waits for the server's queue, too."""
KINDS = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llamacpp": "llama.cpp",
    "library": "Ollama",
    "granite-demo": "granite-demo",
}
"""Who a model's ``owned_by`` says it is served by."""
NO_LIST = (404, 405, 500, 501)
"""Answers of a server that is up but has no list of models, as transformers serve without a cache of the hub."""
NO_KEY = "none"
"""What is sent where there is no key: the client wants one."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model that a server offers."""

    name: str
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found at the last look."""

    up: bool
    why: str = ""
    """What is wrong, where it is not up."""
    models: tuple[Served, ...] = ()
    kind: str = ""
    """Such as vLLM; empty where it is not known."""


def parse_urls(text: str) -> tuple[str, ...]:
    """The addresses in ``text``, parted by commas, each up to /v1. Raises ConfigurationError."""
    urls = tuple(dict.fromkeys(_parse(part.strip()) for part in text.split(",") if part.strip()))
    if not urls:
        raise ConfigurationError("There is no address of a server. Give one such as http://localhost:8000/v1.")
    return urls


def _parse(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # such as a port that is no number
        usable = False
    if not usable or any(not letter.isprintable() or letter.isspace() for letter in text):
        raise ConfigurationError(
            "A server's address is one such as http://localhost:8000/v1; several are parted by commas."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        # The text itself is not shown: it may hold a secret.
        raise ConfigurationError(
            f"The address of {parts.hostname} must be plain. Give a key with --backend-key or GRANITE_DEMO_BACKEND_KEY."
        )
    path = parts.path.rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path if path.endswith("/v1") else f"{path}/v1", "", ""))


@dataclass(eq=False)
class Endpoint:
    """One server. What it is like is ``seen``; what requests have found out beside that holds until it changes."""

    url: str
    """Up to /v1, without credentials."""
    key: str = field(default="", repr=False)
    seen: Seen | None = None
    """None until the first look."""
    refused: frozenset[str] = frozenset()
    """Fields that it does not take, so that they are left out."""
    unknown: frozenset[str] = frozenset()
    """What it has been found not to have: fields that cannot be left out, and tokenize."""
    parses_reasoning: bool = False
    """Whether it has told thinking and answer apart."""
    wake: threading.Event = field(default_factory=threading.Event, repr=False)
    looked: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def up(self) -> bool:
        """Whether it was up at the last look."""
        return bool(self.seen and self.seen.up)

    @property
    def kind(self) -> str:
        """Which software serves there; empty where that is not known."""
        return self.seen.kind if self.seen else ""

    @property
    def shown(self) -> str:
        """The address as it is shown."""
        return self.url.removesuffix("/v1")

    def serves(self, model: str) -> bool:
        """Whether it offers ``model``, as far as is known."""
        return not (self.seen and self.seen.models) or any(model == served.name for served in self.seen.models)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()  # which takes 20 ms: one for all requests

    def connect(self) -> "AsyncOpenAI":
        """A client for one request. It belongs to the event loop that uses it, which has to close it."""
        import openai

        limits = openai.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        client = openai.DefaultAsyncHttpxClient(verify=self._tls, timeout=limits)
        return openai.AsyncOpenAI(http_client=client, timeout=limits, **self._options())

    def _connect_to_look(self) -> "OpenAI":
        import openai

        client = openai.DefaultHttpxClient(verify=self._tls, timeout=CONNECT_SECONDS)
        return openai.OpenAI(http_client=client, timeout=CONNECT_SECONDS, **self._options())

    def _options(self) -> dict[str, Any]:
        import openai

        # The variables of OpenAI's own service have no business here.
        unsent: Any = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
        return {
            "base_url": self.url,
            "api_key": self.key or NO_KEY,
            "max_retries": 0,
            "default_headers": unsent,
        }

    def failed(self, why: str) -> None:
        """A request has found it down: so it is, until the next look, which is soon."""
        seen = self.seen or Seen(False)
        self.seen = Seen(False, why, seen.models, seen.kind)
        self.wake.set()

    def look(self) -> None:
        """Ask for its models."""
        try:
            with self._connect_to_look() as client:
                answer = client.models.with_raw_response.list().http_response
                found = _read_models(answer.json(), answer.headers.get("server", ""))
        except Exception as error:  # whatever a server answers, the thread has to go on looking
            if getattr(error, "status_code", None) in NO_LIST:
                found = Seen(True)
            else:
                before = self.seen or Seen(False)
                found = Seen(False, explain(error, self.shown, "", self.key).user_text, before.models, before.kind)
        self._found(found)
        self.looked.set()

    def _found(self, now: Seen) -> None:
        if now.up and now != self.seen:
            # It was down, or is another one now: what it was found not to have, it may have.
            self.refused, self.unknown, self.parses_reasoning = frozenset(), frozenset(), False
        self.seen = now


def _read_models(answer: Any, server: str) -> Seen:
    rows = answer["data"]
    models = tuple(Served(str(row["id"]), _context_length(row)) for row in rows if row.get("id"))
    owners = [KINDS[owner] for row in rows if (owner := row.get("owned_by")) in KINDS]
    kind = KINDS["llamacpp"] if server == "llama.cpp" else owners[0] if owners else ""
    return Seen(True, "", models, kind)


def _context_length(row: dict[str, Any]) -> int | None:
    meta = row.get("meta")
    numbers = (row.get("max_model_len"), row.get("context_length"), meta.get("n_ctx") if isinstance(meta, dict) else 0)
    return next((number for number in numbers if isinstance(number, int) and number > 0), None)


class Endpoints:
    """All of them. Threads look at them from ``start`` to ``close``."""

    def __init__(self, urls: Sequence[str], key: str = "") -> None:
        self.all = tuple(Endpoint(url, key) for url in urls)
        self._turn = count()
        self._closed = threading.Event()
        self._started = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to look at each; when that is going on, look at once."""
        with self._started:
            if self._closed.is_set():
                return
            for one in self.all[len(self._threads) :]:
                thread = threading.Thread(target=self._watch, args=(one,), name=f"look at {one.shown}", daemon=True)
                self._threads.append(thread)
                thread.start()
        for one in self.all:
            one.wake.set()

    def _watch(self, one: Endpoint) -> None:
        while not self._closed.is_set():
            one.wake.clear()
            before = one.up
            one.look()
            if one.up and not before:
                log.info("The server at %s answers.", one.shown)
            elif before and not one.up and one.seen:
                log.warning("%s", one.seen.why)
            one.wake.wait(UP_SECONDS if one.up else DOWN_SECONDS)

    def wait(self, seconds: float, for_all: bool = False) -> None:
        """Wait until one is up, or each has been looked at once; ``for_all``: until each has been."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all(one.looked.is_set() for one in self.all):
            if not for_all and any(one.up for one in self.all):
                return
            time.sleep(WAIT_SECONDS)

    def order(self, model: str) -> list[Endpoint]:
        """Whom to ask for ``model``, the best first: those that are up take turns, and others come last."""
        turn = next(self._turn) % len(self.all)
        return self._sorted(self.all[turn:] + self.all[:turn], model)

    def best(self, model: str) -> Endpoint:
        """Whom to ask something small about ``model``: nobody's turn is taken by it."""
        return self._sorted(self.all, model)[0]

    @staticmethod
    def _sorted(ones: Sequence[Endpoint], model: str) -> list[Endpoint]:
        able = [one for one in ones if one.serves(model)] or list(ones)
        return sorted(able, key=lambda one: not one.up)

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        for one in self.all:
            one.wake.set()
