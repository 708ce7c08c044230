"""Who may do what on a server that others reach, and how often somebody may guess a secret."""

import ipaddress
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from granite_demo.errors import InvalidRequestError, VisitorLimitError

MAX_FAILURES = 5
"""Wrong secrets of one visitor in ``WINDOW`` seconds; then none of theirs is looked at."""
WINDOW = 60.0
MAX_REMEMBERED = 10_000


class Failures:
    """How often each visitor was wrong of late. Several threads may ask at once."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def check(self, visitor: str) -> None:
        """Raise VisitorLimitError for one who was wrong too often."""
        with self._lock:
            if len(self._recent(visitor)) >= MAX_FAILURES:
                raise VisitorLimitError(
                    "Too many wrong keys or passwords came from your address. Try again in a minute."
                )

    def add(self, visitor: str) -> None:
        """``visitor`` was wrong, or is until ``take_back``."""
        with self._lock:
            if len(self._times) >= MAX_REMEMBERED:
                self._times = {name: times for name, times in self._times.items() if self._recent(name)}
            self._times.setdefault(visitor, deque()).append(time.monotonic())

    def take_back(self, visitor: str) -> None:
        """``visitor`` was right after all."""
        with self._lock:
            if times := self._times.get(visitor):
                times.pop()

    def _recent(self, visitor: str) -> deque[float]:
        times = self._times.get(visitor, deque())
        while times and times[0] <= time.monotonic() - WINDOW:
            times.popleft()
        return times


@dataclass(frozen=True, slots=True)
class Access:
    """Who may change the server's model: everybody, or in public mode those who know the token."""

    public: bool = False
    token: str = ""
    failures: Failures = field(default_factory=Failures)

    def check(self, token: str | None, visitor: str) -> None:
        """Raise InvalidRequestError unless ``token`` allows ``visitor`` to change the server, or VisitorLimitError."""
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
    """What one visitor may have; 0 is no limit."""

    running: int = 0
    """Requests that are answered at once."""
    waiting: int = 0
    """Requests that wait for these; without a limit on running ones none does."""
    tokens: int = 0
    """Tokens in any minute: written, scored, and a part of those read. A request that has begun is not ended by it."""
    seconds: int = 0
    """For an answer and the reading of its prompt. The waits for the engine and for a model come on top."""
    characters: int = 0
    """Of one request's texts, checked before anything reads them."""
    reload: int = 0
    """Seconds between two tries to load a model that has failed; who may change the model chooses it at any time."""


def visitor_of(host: str | None) -> str:
    """Who has the address ``host``: of IPv6 the /64 network, since one household has all of it."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False).network_address)
    return str(address)
