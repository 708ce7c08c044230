"""Counts what each address uses: per minute, and at the same time. Knows no requests."""

import time
from collections import Counter, OrderedDict

RATE_SECONDS = 60.0
MAX_KNOWN = 10_000
"""Addresses, and sessions of all addresses. Beyond it, the first ones are forgotten."""


class Rate:
    """A token bucket for each address: ``most`` each minute, and a part of that ``at_once``. 0: no limit."""

    def __init__(self, most: int, at_once: float = 1.0) -> None:
        self._most = most
        self._room = most * at_once
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens, time)

    def take(self, visitor: str, amount: float = 1.0) -> float:
        """Take ``amount``, at most all that can be had at once. Returns 0, or the seconds until there is so much."""
        if not self._most:
            return 0.0
        now = time.monotonic()
        tokens, at = self._buckets.pop(visitor, (self._room, now))
        tokens = min(self._room, tokens + (now - at) * self._most / RATE_SECONDS)
        wait = max(0.0, (min(amount, self._room) - tokens) * RATE_SECONDS / self._most)
        self._buckets[visitor] = (tokens if wait else tokens - amount, now)
        if len(self._buckets) > MAX_KNOWN:
            self._buckets.popitem(last=False)
        return wait


class NewSessions:
    """The rate of sessions that an address did not use before."""

    def __init__(self, most: int) -> None:
        self._rate = Rate(most)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def take(self, visitor: str, session: str) -> float:
        """``visitor`` uses ``session``. Returns 0, or the seconds until a new one is allowed."""
        one = (visitor, session)
        if not session or one not in self._known:
            if wait := self._rate.take(visitor):
                return wait
            self._known[one] = None
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(one)
        return 0.0


class Places:
    """At most ``most`` at the same time for each address. 0: no limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    def enter(self, visitor: str) -> bool:
        """Take a place of ``visitor``. Returns False if there is none."""
        if self._most and self._taken[visitor] >= self._most:
            return False
        self._taken[visitor] += 1
        return True

    def leave(self, visitor: str) -> None:
        """Give the place back."""
        self._taken[visitor] -= 1
        if self._taken[visitor] <= 0:
            del self._taken[visitor]
