"""Who may change the model of a public server, how often a secret may be guessed, and what one visitor may use."""

import ipaddress
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from granite_demo.errors import InvalidRequestError, VisitorLimitError

MAX_FAILURES = 5
"""Failed attempts of one visitor in ``FAILURE_WINDOW`` seconds, after which further attempts are rejected."""
FAILURE_WINDOW = 60.0
"""Seconds."""
MAX_NAME = 64
"""Characters of an address that is none, such as a wrong one that a proxy reports."""
MAX_REMEMBERED = 10_000
"""Visitors. Beyond it, those without a recent failure are forgotten."""


class Failures:
    """The recent failed attempts of each visitor. Safe to call from several threads."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def check(self, visitor: str) -> None:
        """Raise VisitorLimitError after too many failed attempts of ``visitor``."""
        with self._lock:
            if len(self._recent(visitor)) >= MAX_FAILURES:
                raise VisitorLimitError("Too many failed attempts from your address. Try again in a minute.")

    def add(self, visitor: str) -> None:
        """Count a failed attempt, or an attempt that has not succeeded yet: see ``take_back``."""
        with self._lock:
            if len(self._times) >= MAX_REMEMBERED:
                self._times = {name: times for name, times in self._times.items() if self._recent(name)}
            self._times.setdefault(visitor, deque()).append(time.monotonic())

    def take_back(self, visitor: str) -> None:
        """The last attempt of ``visitor`` succeeded: do not count it."""
        with self._lock:
            if times := self._times.get(visitor):
                times.pop()

    def _recent(self, visitor: str) -> deque[float]:
        times = self._times.get(visitor, deque())
        while times and times[0] <= time.monotonic() - FAILURE_WINDOW:
            times.popleft()
        return times


@dataclass(frozen=True, slots=True)
class Access:
    """Who may change the model of the server: everybody; in public mode only those with the token."""

    public: bool = False
    token: str = ""
    failures: Failures = field(default_factory=Failures)

    def check(self, token: str | None, visitor: str) -> None:
        """Raise InvalidRequestError unless ``token`` allows a change of the model.

        Raises VisitorLimitError after too many failed attempts of ``visitor``.
        """
        if not self.public:
            return
        if not self.token:
            raise InvalidRequestError(
                "Loading is off on this public page. To allow it, start the server with GRANITE_DEMO_ADMIN_TOKEN."
            )
        self.failures.check(visitor)
        if not secrets.compare_digest((token or "").encode(), self.token.encode()):
            self.failures.add(visitor)
            raise InvalidRequestError("That is not the admin token, so the model stays as it is.")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one visitor. 0: no limit."""

    running: int = 0
    """Requests that run at the same time."""
    waiting: int = 0
    """Requests that wait until one of these ends. Without a limit on ``running``, none waits."""
    tokens: int = 0
    """Tokens per minute: generated and scored ones, and a share of the prompt. It does not end a running request."""
    seconds: int = 0
    """For one answer, its prompt included. The waits for the engine and for a model do not count."""
    characters: int = 0
    """Of all texts of one request, checked before anything else reads them."""
    own_prefixes: bool = False
    """Whether a prompt uses only the caches of prompts of the same visitor; see ``SamplingParams.salt``."""
    reload: int = 0
    """Seconds between two attempts to load a failed model. The choice of another model is not limited."""


def visitor_of(host: str | None) -> str:
    """The visitor at the address ``host``: for IPv6 its /48 network, which one customer of a provider can have."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return (host or "")[:MAX_NAME]
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 48), strict=False).network_address)
    return str(address)
