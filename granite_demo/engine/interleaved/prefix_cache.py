"""Stores the caches of ended conversations and finds them by the longest common prefix with a prompt."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Kept(Protocol):
    """A cache with the token ids from which it was computed."""

    ids: list[int]

    @property
    def nbytes(self) -> int:
        """The size of the cache in bytes."""
        ...


K = TypeVar("K", bound=Kept)


class PrefixStore(Generic[K]):
    """Stores caches up to a number of bytes and drops the least recently used first."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._kept: list[K] = []  # the most recently used last

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """The size of all caches in bytes."""
        return sum(kept.nbytes for kept in self._kept)

    def put(self, new: K) -> None:
        """Store ``new`` and drop the caches that are a prefix of it. If it is larger than the budget, do nothing."""
        if new.nbytes > self._budget:
            return
        self._kept = [kept for kept in self._kept if common(kept.ids, new.ids) < len(kept.ids)]
        self._kept.append(new)
        while self.nbytes > self._budget:
            del self._kept[0]

    def find(self, ids: Sequence[int], complete: bool = False) -> tuple[K | None, int]:
        """Return the cache with the longest common prefix with ``ids`` and its length, or None and 0.

        With ``complete``, only caches that are completely a prefix of ``ids`` count. The last of ``ids`` is never a
        part of the prefix, because caches do not contain logits.
        """
        best, most = None, 0
        for kept in reversed(self._kept):
            shared = common(kept.ids, ids[:-1])
            if shared > most and (shared == len(kept.ids) or not complete):
                best, most = kept, shared
        if best is not None:
            self._kept.remove(best)
            self._kept.append(best)
        return best, most

    def take(self, kept: K) -> None:
        """Remove a cache from the store, because a request continues with it."""
        self._kept.remove(kept)

    def clear(self) -> None:
        """Drop all caches."""
        self._kept.clear()


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
