"""Connections: how many one address can hold, and how long the head of a request can take.

uvicorn has no limit for either (https://github.com/Kludex/uvicorn/issues/157).
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.middleware.proxy_headers import _TrustedHosts
from uvicorn.protocols.http.h11_impl import H11Protocol

from granite_demo.access import visitor_of
from granite_demo.server.policy import Policy, Quota
from granite_demo.server.quotas import Places, Rate

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
"""From the connection, or from the first byte of a request, to the end of its head."""
MAX_CONNECTIONS = 4_096
"""Of all addresses."""
RESERVED = 256
"""Descriptors for files, pipes and listeners, and for connections that asyncio has accepted and not yet passed on."""
BACKLOG = 128
"""Connections that wait. asyncio accepts all of them before it handles one."""
LOG_SECONDS = 10.0
"""Between two lines of the log about connections that were closed."""


class Config(uvicorn.Config):
    """uvicorn's configuration, with the connections that it allows."""

    def __init__(self, app: Any, policy: Policy, **options: Any) -> None:
        # Only the guard reads what a proxy says.
        super().__init__(app, http=Connection, ws="none", proxy_headers=False, backlog=BACKLOG, **options)
        proxies = _TrustedHosts(policy.proxies)
        self.limits = ConnectionLimits(policy.quota, raise_descriptors(), proxies)


class ConnectionLimits:
    """Counts connections by address."""

    def __init__(self, quota: Quota, most: int, trusted: _TrustedHosts) -> None:
        """``quota``: of one address that is not ``trusted``. ``most``: of all together, at the same time."""
        self._places, self._new = Places(quota.connections), Rate(quota.new_connections)
        self._most, self._trusted = most, trusted
        self._open = 0
        self._closed, self._silent_until = 0, 0.0

    def enter(self, host: str) -> Callable[[], None] | None:
        """Count a connection from ``host``. Returns what ends it, or None if it is one too many."""
        visitor = "" if host in self._trusted else visitor_of(host)
        if self._open >= self._most:
            return None
        if visitor and (self._new.take(visitor) or not self._places.enter(visitor)):
            return None
        self._open += 1

        def leave() -> None:
            self._open -= 1
            if visitor:
                self._places.leave(visitor)

        return leave

    def note(self, now: float) -> None:
        """A connection was closed at the time ``now``: a line in the log, but not for each one."""
        self._closed += 1
        if now >= self._silent_until:
            log.warning("Closed connections that were too many or too slow: %d.", self._closed)
            self._closed, self._silent_until = 0, now + LOG_SECONDS


class Connection(H11Protocol):
    """A connection that is closed if it is one too many, or if the head of a request does not arrive in time."""

    config: Config
    _leave: Callable[[], None] | None = None
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self._leave = self.config.limits.enter(self.client[0] if self.client else "")
        if self._leave is None:
            self._close()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        super().connection_lost(exc)
        self._stop_watching()
        if self._leave:
            self._leave()
            self._leave = None

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # the head is complete
            self._stop_watching()
        elif self._deadline is None:
            self._watch()

    def _watch(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._close)

    def _stop_watching(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self.config.limits.note(self.loop.time())
        self.transport.abort()

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: a stranger can ask for an upgrade at any rate."""


def raise_descriptors() -> int:
    """Raise the limit of descriptors as far as this process may. Returns the connections that it allows."""
    if resource is None:
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (OSError, ValueError):  # macOS allows less than it names
        log.debug("The limit of descriptors stays %d.", soft)
    allowed = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft - RESERVED
    return max(RESERVED, min(MAX_CONNECTIONS, allowed))
