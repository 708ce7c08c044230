"""The requests of the batching engine that have a slot: in the loop, or suspended between two submissions."""

import itertools

from granite_demo.engine.batching.loop import PAGE
from granite_demo.engine.batching.prefix_salt import SALT
from granite_demo.engine.batching.request import Request


class Slots:
    """The slots and their requests. Not thread-safe: the caller holds the engine's lock."""

    def __init__(self, slots: int, capacity: int) -> None:
        """``capacity`` is the size of the cache in tokens."""
        self.running: dict[str, Request] = {}
        """The requests in the loop, by their names there."""
        self.free = list(range(slots))
        """The free slots."""
        self._suspended: list[Request] = []
        self._names = itertools.count()
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self.running) + len(self._suspended)

    def _all(self) -> list[Request]:
        return [*self.running.values(), *self._suspended]

    @property
    def used(self) -> float:
        """The part of the cache that the requests have filled, from 0 to 1."""
        return sum(len(request.prompt_ids) + len(request.answer) for request in self._all()) / self._capacity

    def fits(self, request: Request) -> bool:
        """Whether the cache has space for ``request``. A single request always fits."""
        used = sum(other.likely_tokens + PAGE for other in self._all())
        return not used or used + request.likely_tokens + PAGE <= self._capacity

    def enter(self, request: Request) -> int:
        """Give ``request`` a new name and return its slot, which is the one that was freed last."""
        request.id = f"request-{next(self._names)}{SALT}{request.sampling.salt}"
        request.received = 0
        self.running[request.id] = request
        return self.free.pop()

    def leave(self, request: Request) -> bool:
        """Free the slot of a request, if it has one. Return whether the request was in the loop."""
        if not self.leave_suspended(request) and self.running.pop(request.id, None) is not None:
            return self._free(request)
        return False

    def suspend(self, request: Request) -> None:
        """Take a request out of the loop without freeing its slot."""
        self._suspended.append(self.running.pop(request.id))

    def leave_suspended(self, request: Request) -> bool:
        """Free the slot of a suspended request. Return False if it is not suspended."""
        if request not in self._suspended:
            return False
        self._suspended.remove(request)
        return self._free(request)

    def _free(self, request: Request) -> bool:
        assert request.row is not None
        self.free.append(request.row.slot)
        return True

    def clear(self) -> list[Request]:
        """Remove and return all requests."""
        requests = self._all()
        self.running.clear()
        self._suspended.clear()
        return requests
