"""The requests of the batching engine that have a slot, in the loop or between two submissions."""

import itertools

from granite_demo.engine.batching.loop import PAGE
from granite_demo.engine.batching.request import Request


class Places:
    """Not thread-safe: the engine's lock guards it."""

    def __init__(self, slots: int, capacity: int) -> None:
        """``capacity``: tokens of the cache."""
        self.running: dict[str, Request] = {}
        """Those that the loop computes, by their name there."""
        self.free = list(range(slots))
        """Slots that nobody has."""
        self._between: list[Request] = []
        self._names = itertools.count()
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self.running) + len(self._between)

    def _all(self) -> list[Request]:
        return [*self.running.values(), *self._between]

    @property
    def used(self) -> float:
        """The part of the cache that they have filled."""
        return sum(len(request.prompt_ids) + len(request.answer) for request in self._all()) / self._capacity

    def fits(self, request: Request) -> bool:
        """Whether the cache has room for another one, too. There is for one alone."""
        used = sum(other.likely_tokens + PAGE for other in self._all())
        return not used or used + request.likely_tokens + PAGE <= self._capacity

    def enter(self, request: Request) -> int:
        """Name it anew, for the loop. Returns its slot: the one that was freed last."""
        request.id = f"request-{next(self._names)}"
        request.received = 0
        self.running[request.id] = request
        return self.free.pop()

    def leave(self, request: Request) -> bool:
        """Free the slot of a request, if it has one. Whether it was in the loop."""
        if not self.leave_between(request) and self.running.pop(request.id, None) is not None:
            return self._free(request)
        return False

    def step_out(self, request: Request) -> None:
        """It leaves the loop, and keeps its slot."""
        self._between.append(self.running.pop(request.id))

    def leave_between(self, request: Request) -> bool:
        """Free the slot of a request that stepped out. False if none did."""
        if request not in self._between:
            return False
        self._between.remove(request)
        return self._free(request)

    def _free(self, request: Request) -> bool:
        assert request.row is not None
        self.free.append(request.row.slot)
        return True

    def clear(self) -> list[Request]:
        """Remove and return all."""
        requests = self._all()
        self.running.clear()
        self._between.clear()
        return requests
